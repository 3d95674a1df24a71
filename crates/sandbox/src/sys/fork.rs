//! Making processes: fork into new namespaces, and execve.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::process::Pid;

/// Which namespaces a child gets of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Namespaces {
    pub(crate) user: bool,
    pub(crate) mount: bool,
    pub(crate) ipc: bool,
    pub(crate) pid: bool,
    pub(crate) net: bool,
    pub(crate) uts: bool,
}

impl Namespaces {
    fn parts(self) -> [(bool, libc::c_int, &'static str); 6] {
        [
            (self.user, libc::CLONE_NEWUSER, "CLONE_NEWUSER"),
            (self.mount, libc::CLONE_NEWNS, "CLONE_NEWNS"),
            (self.ipc, libc::CLONE_NEWIPC, "CLONE_NEWIPC"),
            (self.pid, libc::CLONE_NEWPID, "CLONE_NEWPID"),
            (self.net, libc::CLONE_NEWNET, "CLONE_NEWNET"),
            (self.uts, libc::CLONE_NEWUTS, "CLONE_NEWUTS"),
        ]
    }

    /// The call as a message names it: `clone(CLONE_NEWUSER|CLONE_NEWNS)`, or `fork()` without any.
    pub(crate) fn call(self) -> String {
        let names: Vec<_> = self.parts().into_iter().filter(|part| part.0).map(|part| part.2).collect();
        if names.is_empty() { "fork()".to_owned() } else { format!("clone({})", names.join("|")) }
    }
}

/// Ends the child in whatever way `fork`'s closure is left, a panic included: it must never run its parent's code.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        // SAFETY: _exit runs no handler and touches no memory.
        unsafe { libc::_exit(99) }
    }
}

/// Forks into new namespaces and runs `child` there; what it returns is the exit code. SIGCHLD tells of its end.
///
/// `child` must restrict itself to system calls on data made before: other threads' locks, the allocator's among
/// them, may be held for ever in the copy. (Breaking that rule hangs the child; it can't break memory.)
pub(crate) fn fork(namespaces: Namespaces, child: impl FnOnce() -> u8) -> Result<Pid, Errno> {
    let flags =
        namespaces.parts().into_iter().filter(|part| part.0).fold(libc::SIGCHLD, |all, part| all | part.1);
    let none = ptr::null_mut::<libc::c_void>();
    // SAFETY: without CLONE_VM and with no stack given, clone is fork: the child has a copy of the address space and
    // goes on from here on its own copy of this stack. No pointer is given for the kernel to write through.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), none, none, none, none) };
    match pid {
        -1 => Err(last_error()),
        0 => {
            let _leave = Leave;
            let code = child();
            // SAFETY: _exit runs no handler and touches no memory.
            unsafe { libc::_exit(i32::from(code)) }
        }
        pid => i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH),
    }
}

/// Child: becomes the leader of a session and a process group of its own. (rustix takes the id that the call gives
/// for a valid one; gVisor gives 0.)
pub(crate) fn become_session() -> Result<(), Errno> {
    // SAFETY: setsid touches no memory.
    if unsafe { libc::setsid() } < 0 { Err(last_error()) } else { Ok(()) }
}

/// A null-terminated array of C strings, as execve takes it.
#[derive(Debug)]
pub(crate) struct Strings {
    _owned: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl Strings {
    pub(crate) fn new(owned: Vec<CString>) -> Self {
        // A CString's bytes lie on the heap, so the pointers hold when `owned` itself is moved.
        let pointers = owned.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Self { _owned: owned, pointers }
    }
}

/// Child: becomes another program. Returns only if that failed.
pub(crate) fn execve(program: &CStr, arguments: &Strings, environment: &Strings) -> Errno {
    // SAFETY: `Strings` keeps its strings alive beside the null-terminated array of pointers to them.
    unsafe { libc::execve(program.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    last_error()
}

/// Child: makes a mount and all below it read-only. ENOSYS before Linux 5.12.
pub(crate) fn set_readonly_recursive(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::c_long::from(libc::AT_EMPTY_PATH | libc::AT_RECURSIVE);
    // SAFETY: the path is a C string, the attributes are a live struct, and the size given is its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::c_long::from(mount.as_raw_fd()),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// What the last libc call failed with.
pub(super) fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{WaitOptions, waitpid};

    fn code_of(pid: Pid) -> Option<i32> {
        waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap().1.exit_status()
    }

    #[test]
    fn a_child_ends_with_the_code_of_its_closure() {
        let pid = fork(Namespaces::default(), || 7).unwrap();
        assert_eq!(code_of(pid), Some(7));
    }

    #[test]
    fn execve_passes_arguments_and_environment() {
        let arguments =
            Strings::new([c"sh", c"-c", c"test \"$1$A\" = xy", c"sh", c"x"].map(CStr::to_owned).to_vec());
        let environment = Strings::new(vec![c"A=y".to_owned()]);
        let pid = fork(Namespaces::default(), || {
            execve(c"/bin/sh", &arguments, &environment);
            1
        })
        .unwrap();
        assert_eq!(code_of(pid), Some(0));
    }

    #[test]
    fn a_call_is_named_with_its_flags() {
        let namespaces = Namespaces { user: true, mount: true, ..Namespaces::default() };
        assert_eq!(namespaces.call(), "clone(CLONE_NEWUSER|CLONE_NEWNS)");
        assert_eq!(Namespaces::default().call(), "fork()");
    }
}
