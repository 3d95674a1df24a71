//! Bytes as an archive that is compressed in any way, and as the address of a context. The first byte says which.

#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use kiln_cloud::Environment;
use kiln_context::git::{GitAddress, GitOptions, PullMethod, Remote, is_commit, is_git};
use kiln_context::{Place, is_archive, open_archive};

/// What is read of an archive at most, in bytes.
const MOST: u64 = 4 << 20;

thread_local! {
    static FILE: RefCell<File> = RefCell::new(tempfile::tempfile_in("/dev/shm").expect("a file can be made"));
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((0..=127, content)) => archive(content),
        Some((_, content)) => address(&String::from_utf8_lossy(content)),
        None => {}
    }
});

fn archive(content: &[u8]) {
    FILE.with_borrow_mut(|file| {
        file.rewind()
            .and_then(|()| file.set_len(0))
            .and_then(|()| file.write_all(content))
            .expect("it is written");
        let read = || {
            let mut found = Vec::new();
            let whole = open_archive(file)?.take(MOST).read_to_end(&mut found).is_ok();
            std::io::Result::Ok((found, whole))
        };
        let (Ok((first, whole)), Ok(again)) = (read(), read()) else { return };
        assert_eq!((&first, whole), (&again.0, again.1));
        assert!(first.len() >= 512 || !is_archive(file));
    });
}

fn address(text: &str) {
    check_address(text);
    // Behind a login that can't stand in the text by chance: it is never shown.
    let secret = kiln_oci::Digest::of(text.as_bytes()).short();
    for scheme in ["https", "ssh", "git"] {
        let address = format!("{scheme}://me:{secret}@{text}");
        check_address(&address);
        let shown = match GitAddress::parse(&address, PullMethod::Https) {
            Ok(address) => format!("{address} {address:?}"),
            Err(why) => why,
        };
        assert!(!shown.contains(&secret), "{shown}");
        if let Err(why) = place(&address) {
            assert!(!why.contains(&secret), "{why}");
        }
    }
}

fn place(text: &str) -> Result<Place, String> {
    Place::parse(text, Path::new("/w"), &GitOptions::default(), &Environment::default())
}

fn check_address(text: &str) {
    match place(text) {
        Ok(Place::Git(_)) => assert!(is_git(text)),
        Ok(Place::Directory(path) | Place::Archive(path)) => assert!(path.is_absolute()),
        _ => {}
    }
    let Ok(address) = GitAddress::parse(text, PullMethod::Https) else { return };
    let leads_up = |folder: &String| folder.split('/').any(|part| matches!(part, "" | "." | ".."));
    assert!(!address.sub_dir.as_ref().is_some_and(leads_up), "{address:?}");
    assert!(address.commit.as_deref().is_none_or(is_commit));
    for name in [&address.reference, &address.commit].into_iter().flatten() {
        assert!(!name.starts_with('-') && !name.chars().any(|c| c.is_ascii_control()), "{address:?}");
    }
    match &address.remote {
        Remote::Web(url) => assert!(url.username().is_empty() && url.password().is_none() && url.has_host()),
        Remote::Ssh { host, .. } => assert!(!host.is_empty(), "{address:?}"),
    }
    assert!(address.to_string().contains("://"));
}
