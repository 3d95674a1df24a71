//! What is known of an entry of a tree, contents aside.

use rustix::fs::{FileType, Statx, StatxFlags};

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A Unix socket. Layers can't hold one.
    Socket,
}

/// A time in seconds since 1970 (negative before), and nanoseconds after that second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds.
    pub secs: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

/// An entry's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Permissions with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of anything, as the file system has it.
    pub ctime: Timestamp,
    /// Length in bytes; of a link, its target's. 0 for a directory.
    pub size: u64,
    /// Major and minor number of a device.
    pub rdev: Option<(u32, u32)>,
    /// Where a symbolic link leads.
    pub link: Option<Vec<u8>>,
    /// Device and inode number: equal for hard links.
    pub inode: (u64, u64),
    /// How many names the inode has.
    pub nlink: u64,
}

impl Meta {
    /// Metadata of something new, with everything zero that is not given.
    pub fn new(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: Timestamp::default(),
            ctime: Timestamp::default(),
            size: 0,
            rdev: None,
            link: None,
            inode: (0, 0),
            nlink: 1,
        }
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// Whether this is the 0/0 character device by which overlayfs marks what is deleted.
    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::CharDevice && self.rdev == Some((0, 0))
    }

    pub(crate) const WANTED: StatxFlags = StatxFlags::BASIC_STATS;

    /// From what the kernel says; the link's target has to be read apart.
    pub(crate) fn from_statx(stat: &Statx) -> Self {
        let kind = match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Socket => Kind::Socket,
            _ => Kind::File,
        };
        let device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        Self {
            kind,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            mtime: Timestamp { secs: stat.stx_mtime.tv_sec, nanos: stat.stx_mtime.tv_nsec },
            ctime: Timestamp { secs: stat.stx_ctime.tv_sec, nanos: stat.stx_ctime.tv_nsec },
            size: if kind == Kind::Directory { 0 } else { stat.stx_size },
            rdev: device.then_some((stat.stx_rdev_major, stat.stx_rdev_minor)),
            link: None,
            inode: (u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor), stat.stx_ino),
            nlink: u64::from(stat.stx_nlink),
        }
    }

    /// Whether a reader sees the same: everything but inode, ctime and link count; a directory's time counts.
    pub fn same_to_a_reader(&self, other: &Self) -> bool {
        self.kind == other.kind
            && (self.mode == other.mode || self.kind == Kind::Symlink)
            && self.uid == other.uid
            && self.gid == other.gid
            && self.mtime == other.mtime
            && self.size == other.size
            && self.rdev == other.rdev
            && self.link == other.link
    }
}
