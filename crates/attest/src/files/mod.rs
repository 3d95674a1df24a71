//! Which files tell of packages, and reading them. What a package manager has installed comes from its database; what an
//! application was made of comes from lock files, from what installers leave beside the code, and from Go's programs.

mod archives;
mod databases;
mod go;
mod javascript;
mod locks;
mod python;

use std::io::Read;

use crate::package::Package;

/// A kind of file that tells of packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Catalog {
    /// `/etc/os-release`: which distribution this is.
    OsRelease,
    /// dpkg's status file, or one of distroless images' pieces of it.
    Dpkg,
    /// apk's database.
    Apk,
    /// RPM's database, in SQLite's, NDB's or Berkeley DB's format.
    Rpm,
    /// npm's `package-lock.json` or `npm-shrinkwrap.json`.
    PackageLock,
    /// `package.json` of a package that was installed below `node_modules`.
    PackageJson,
    /// `yarn.lock`, of either yarn.
    YarnLock,
    /// `pnpm-lock.yaml`.
    PnpmLock,
    /// `requirements.txt`: what is pinned in it.
    Requirements,
    /// `METADATA` of a wheel that was installed, `PKG-INFO` of an egg.
    PythonMetadata,
    /// `Pipfile.lock`.
    PipfileLock,
    /// `poetry.lock`, `uv.lock`.
    PythonLock,
    /// `Cargo.lock`.
    CargoLock,
    /// `go.sum`.
    GoSum,
    /// A program that may be Go's.
    Program,
    /// `Gemfile.lock`.
    GemfileLock,
    /// A gem that was installed: its `.gemspec`.
    Gemspec,
    /// `composer.lock`, and `installed.json` of what was installed.
    Composer,
    /// A Java archive.
    Jar,
}

/// Why a file that should tell of packages doesn't.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// It is too large to be held in memory.
    #[error("it has {0} bytes, more than are read")]
    TooLarge(u64),
    /// It is not what its name says, or damaged.
    #[error("{0}")]
    Format(String),
    /// It could not be read at all.
    #[error("it could not be read: {0}")]
    Io(#[from] std::io::Error),
}

/// What a file tells.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Packages.
    pub packages: Vec<Package>,
    /// The distribution.
    pub distribution: Option<Distribution>,
}

/// A distribution, by its own words in `os-release`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distribution {
    /// `ID`.
    pub id: String,
    /// `VERSION_ID`; empty where there is none.
    pub version: String,
    /// `PRETTY_NAME`.
    pub name: String,
}

impl Found {
    pub(crate) fn is_empty(&self) -> bool {
        self.packages.is_empty() && self.distribution.is_none()
    }
}

/// Databases and archives up to this size are read; they are held in memory.
const LARGEST: u64 = 256 << 20;
/// Text files up to this size are read.
const LARGEST_TEXT: u64 = 32 << 20;
/// Smaller programs are not Go's.
const SMALLEST_PROGRAM: u64 = 256 << 10;

impl Catalog {
    /// What the file at `path` may tell, by its name, its size in bytes and its mode.
    pub fn of(path: &str, size: u64, mode: u32) -> Option<Self> {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let ends = |suffix: &str| name.len() > suffix.len() && name.ends_with(suffix);
        Some(match name {
            "os-release" if matches!(directory, "etc" | "usr/lib") => Self::OsRelease,
            "status" if directory == "var/lib/dpkg" => Self::Dpkg,
            _ if directory == "var/lib/dpkg/status.d" && !ends(".md5sums") => Self::Dpkg,
            "installed" if matches!(directory, "lib/apk/db" | "usr/lib/apk/db") => Self::Apk,
            "Packages" | "Packages.db" | "rpmdb.sqlite"
                if matches!(directory, "var/lib/rpm" | "usr/lib/sysimage/rpm" | "usr/share/rpm") =>
            {
                Self::Rpm
            }
            "package-lock.json" | "npm-shrinkwrap.json" => Self::PackageLock,
            "package.json" if javascript::is_installed(directory) => Self::PackageJson,
            "yarn.lock" => Self::YarnLock,
            "pnpm-lock.yaml" => Self::PnpmLock,
            "requirements.txt" => Self::Requirements,
            "METADATA" if directory.ends_with(".dist-info") => Self::PythonMetadata,
            "PKG-INFO" if directory.ends_with(".egg-info") => Self::PythonMetadata,
            "Pipfile.lock" => Self::PipfileLock,
            "poetry.lock" | "uv.lock" => Self::PythonLock,
            "Cargo.lock" => Self::CargoLock,
            "go.sum" => Self::GoSum,
            "Gemfile.lock" => Self::GemfileLock,
            "composer.lock" => Self::Composer,
            "installed.json" if directory.ends_with("vendor/composer") => Self::Composer,
            _ if ends(".gemspec") && directory.contains("specifications") => Self::Gemspec,
            _ if ends(".jar") || ends(".war") || ends(".ear") => Self::Jar,
            _ if mode & 0o111 != 0 && size >= SMALLEST_PROGRAM => Self::Program,
            _ => return None,
        })
    }

    fn largest(self) -> u64 {
        match self {
            Self::Rpm | Self::Jar => LARGEST,
            // Read as a stream.
            Self::Program => u64::MAX,
            _ => LARGEST_TEXT,
        }
    }
}

/// Reads what a file tells.
pub(crate) fn read(catalog: Catalog, path: &str, size: u64, content: &mut dyn Read) -> Result<Found, Unread> {
    if catalog == Catalog::Program {
        return Ok(Found { packages: go::program(content)?, distribution: None });
    }
    let most = catalog.largest();
    if size > most {
        return Err(Unread::TooLarge(size));
    }
    let mut bytes = Vec::new();
    content.take(most).read_to_end(&mut bytes)?;
    if catalog == Catalog::OsRelease {
        return Ok(Found { packages: Vec::new(), distribution: databases::os_release(&text(&bytes)) });
    }
    let packages = match catalog {
        Catalog::Rpm => crate::rpm::packages(&bytes)?,
        Catalog::Jar => archives::jar(&bytes)?,
        Catalog::Dpkg => databases::dpkg(&text(&bytes)),
        Catalog::Apk => databases::apk(&text(&bytes)),
        Catalog::PackageLock => javascript::package_lock(&bytes)?,
        Catalog::PackageJson => javascript::package_json(&bytes)?,
        Catalog::YarnLock => javascript::yarn_lock(&text(&bytes)),
        Catalog::PnpmLock => javascript::pnpm_lock(&text(&bytes)),
        Catalog::Requirements => python::requirements(&text(&bytes)),
        Catalog::PythonMetadata => python::metadata(&text(&bytes)),
        Catalog::PipfileLock => python::pipfile_lock(&bytes)?,
        Catalog::PythonLock => locks::toml_packages(&text(&bytes), crate::Ecosystem::Pypi),
        Catalog::CargoLock => locks::toml_packages(&text(&bytes), crate::Ecosystem::Cargo),
        Catalog::GoSum => go::sum(&text(&bytes)),
        Catalog::GemfileLock => locks::gemfile_lock(&text(&bytes)),
        Catalog::Gemspec => locks::gemspec(path),
        Catalog::Composer => locks::composer(&bytes)?,
        Catalog::OsRelease | Catalog::Program => Vec::new(),
    };
    Ok(Found { packages, distribution: None })
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn json(bytes: &[u8]) -> Result<serde_json::Value, Unread> {
    serde_json::from_slice(bytes).map_err(|error| Unread::Format(format!("it is no JSON: {error}")))
}
