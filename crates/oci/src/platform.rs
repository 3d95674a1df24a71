//! Platforms: operating system, architecture, variant, normalised as containerd's `platforms` package does it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image runs on, in normal form: `linux/arm64` has no variant, `linux/arm` always has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// For example `linux`.
    pub os: String,
    /// Go's name: `amd64`, `arm64`, `arm`, …
    pub architecture: String,
    /// For example `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a text is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform; write os/architecture or os/architecture/variant, as in linux/arm64")]
pub struct PlatformError(pub String);

impl Platform {
    /// A platform in normal form.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant.unwrap_or_default().to_ascii_lowercase();
        let (architecture, variant) = match (architecture.to_ascii_lowercase().as_str(), variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64".to_owned(), String::new()),
            ("x86_64" | "x86-64", _) => ("amd64".to_owned(), variant),
            ("i386" | "i486" | "i586" | "i686", _) => ("386".to_owned(), String::new()),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64".to_owned(), String::new()),
            ("aarch64", _) => ("arm64".to_owned(), variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm".to_owned(), "v7".to_owned()),
            ("armel", _) => ("arm".to_owned(), "v6".to_owned()),
            ("arm", "5" | "6" | "8") => ("arm".to_owned(), format!("v{variant}")),
            (other, _) => (other.to_owned(), variant),
        };
        Self { os, architecture, variant: (!variant.is_empty()).then_some(variant) }
    }

    /// The platform that this binary was compiled for, with `linux` as its system.
    pub fn host() -> Self {
        let variant = if cfg!(target_arch = "arm") { Some("v7") } else { None };
        let architecture = match std::env::consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "x86" => "386",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new("linux", architecture, variant)
    }

    /// How well an image for `offered` serves this platform: 0 is exact, higher is worse, `None` is not at all.
    pub fn rank(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os {
            return None;
        }
        if self.architecture != offered.architecture {
            // A 64-bit ARM machine is not offered 32-bit images: an image built for the one must not mix in the other.
            return None;
        }
        let level = |platform: &Self| match platform.variant.as_deref() {
            Some(variant) => variant.trim_start_matches('v').parse::<u32>().ok(),
            None => Some(match platform.architecture.as_str() {
                "arm64" => 8,
                _ => 1,
            }),
        };
        if self.variant == offered.variant {
            return Some(0);
        }
        let (mine, theirs) = (level(self)?, level(offered)?);
        mine.checked_sub(theirs)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.trim().split('/').collect();
        let well_formed = |part: &&str| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
        };
        // "os(version)" is how containerd writes Windows versions; they don't matter for choosing here.
        let cleaned: Vec<&str> = parts.iter().map(|part| part.split('(').next().unwrap_or(part)).collect();
        if !cleaned.iter().all(well_formed) {
            return Err(PlatformError(text.to_owned()));
        }
        match cleaned.as_slice() {
            [one] => {
                let host = Self::host();
                if matches!(*one, "linux" | "windows" | "darwin" | "freebsd") {
                    Ok(Self::new(one, &host.architecture, host.variant.as_deref()))
                } else if *one == "local" {
                    Ok(host)
                } else {
                    Ok(Self::new("linux", one, None))
                }
            }
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(PlatformError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_are_normalised() {
        for (text, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/aarch64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("Linux/AMD64", "linux/amd64"),
            ("arm64", "linux/arm64"),
            ("linux/386", "linux/386"),
        ] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), normal, "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "linux//", "a/b/c/d", "linux/$ARCH"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
