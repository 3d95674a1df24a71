use std::io::{BufRead, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};

use kiln_oci::{Descriptor, Digest};
use kiln_store::{Durability, ReadOnly, Resume, Store, StoreError};

use crate::images::{names, volume};
use crate::undisturbed;

/// Larger than two windows of the map, and no multiple of anything.
fn large() -> Vec<u8> {
    (0..9_000_001_u32).map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

#[test]
fn what_is_committed_is_found_and_read_back() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let bytes = large();
    let mut writer = store.writer(None).unwrap();
    writer.write_all(&bytes).unwrap();
    assert_eq!(writer.position(), bytes.len() as u64);
    let digest = writer.commit().unwrap();
    assert_eq!(digest, Digest::of(&bytes));

    let reader = Store::<ReadOnly>::open(dir.path()).unwrap();
    let blob = reader.blob(&digest).unwrap().unwrap();
    assert_eq!(blob.len(), bytes.len() as u64);
    assert_eq!(&*blob.read().unwrap(), &bytes[..]);
    let mut tail = Vec::new();
    blob.reader_from(8_999_999).read_to_end(&mut tail).unwrap();
    assert_eq!(tail, &bytes[8_999_999..]);
    assert!(reader.blob(&Digest::of(b"other")).unwrap().is_none());
}

#[test]
fn a_reader_gives_the_same_by_slices_as_by_copies() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let bytes = large();
    let digest = store.put(&bytes).unwrap();
    let blob = store.blob(&digest).unwrap().unwrap();
    let mut reader = blob.reader();
    let mut seen = Vec::new();
    let mut few = [0; 1000];
    loop {
        let slice = reader.fill_buf().unwrap();
        if slice.is_empty() {
            break;
        }
        let half = slice.len().div_ceil(2);
        seen.extend_from_slice(&slice[..half]);
        reader.consume(half);
        let read = reader.read(&mut few).unwrap();
        seen.extend_from_slice(&few[..read]);
    }
    assert!(seen == bytes);
}

#[test]
fn a_dropped_writer_leaves_no_file() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let mut writer = store.writer(None).unwrap();
    writer.write_all(b"half of it").unwrap();
    drop(writer);
    assert!(names(dir.path().join("kiln/tmp")).is_empty());
    assert!(names(dir.path().join("blobs/sha256")).is_empty());
}

#[test]
fn bytes_with_another_digest_than_expected_are_refused_and_not_kept() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let expected = Digest::of(b"right");
    let mut writer = store.writer(Some(expected.clone())).unwrap();
    writer.write_all(b"wrong").unwrap();
    let error = writer.commit().unwrap_err();
    assert!(matches!(&error, StoreError::Unexpected { expected: wanted, found }
        if *wanted == expected && *found == Digest::of(b"wrong")));

    let Resume::Partial(mut writer) = store.resume(&expected).unwrap() else { panic!("nothing is there") };
    writer.write_all(b"wrong").unwrap();
    writer.commit().unwrap_err();
    let Resume::Partial(writer) = store.resume(&expected).unwrap() else { panic!("nothing is there") };
    assert_eq!(writer.position(), 0, "what was wrong is not gone on with");
    assert!(store.blob(&expected).unwrap().is_none());
}

#[test]
fn a_partial_download_is_resumed_where_it_ended() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let digest = Digest::of(b"first second");
    {
        let store = volume(dir.path());
        let Resume::Partial(mut writer) = store.resume(&digest).unwrap() else { panic!("nothing is there") };
        writer.write_all(b"first ").unwrap();
    }
    // Opening the volume anew cleans up, and leaves this.
    let store = volume(dir.path());
    let Resume::Partial(mut writer) = store.resume(&digest).unwrap() else { panic!("nothing is there") };
    assert_eq!(writer.position(), 6);
    assert!(store.try_resume(&digest).unwrap().is_none(), "one at a time");
    writer.write_all(b"second").unwrap();
    assert_eq!(writer.commit().unwrap(), digest);
    assert!(matches!(store.resume(&digest).unwrap(), Resume::Present(_)));
    assert!(names(dir.path().join("kiln/tmp")).is_empty());
}

#[test]
fn a_restarted_download_begins_at_nothing() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let digest = Digest::of(b"whole");
    let Resume::Partial(mut writer) = store.resume(&digest).unwrap() else { panic!("nothing is there") };
    writer.write_all(b"something else, and longer").unwrap();
    writer.restart().unwrap();
    assert_eq!(writer.position(), 0);
    writer.write_all(b"whole").unwrap();
    assert_eq!(writer.commit().unwrap(), digest);
    assert_eq!(&*store.blob(&digest).unwrap().unwrap().read().unwrap(), b"whole");
}

#[test]
fn a_flipped_bit_fails_the_reader_at_its_end_with_the_path() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let digest = store.put(&large()).unwrap();
    let path = store.blob_path(&digest);
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5_000_000).unwrap();
    file.write_all_at(&[byte[0] ^ 4], 5_000_000).unwrap();

    let blob = store.blob(&digest).unwrap().unwrap();
    let mut bytes = Vec::new();
    let error = blob.reader().read_to_end(&mut bytes).unwrap_err();
    let error = StoreError::in_io(&error).unwrap();
    assert!(error.is_damage());
    assert!(matches!(error, StoreError::Corrupt { path: named, .. } if *named == path), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()));

    let report = store.verify(&mut |_| ()).unwrap();
    assert_eq!((report.blobs, report.bad.len()), (1, 1));
    assert_eq!(report.bad[0].digest, digest);
    assert!(store.discard(&digest).unwrap());
    assert!(store.blob(&digest).unwrap().is_none());
}

#[test]
fn a_blob_of_the_wrong_length_is_damaged() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let digest = store.put(b"twelve bytes").unwrap();
    let whole = Descriptor::new("", digest.clone(), 12);
    assert!(store.has(&whole));
    std::fs::OpenOptions::new().write(true).open(store.blob_path(&digest)).unwrap().set_len(5).unwrap();
    assert!(!store.has(&whole));
    let error = store.blob_of(&whole).unwrap_err();
    assert!(matches!(error, StoreError::Size { expected: 12, found: 5, .. }), "{error}");
}

#[test]
fn a_damaged_blob_is_replaced_under_its_name() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let digest = store.put(b"sound").unwrap();
    std::fs::write(store.blob_path(&digest), b"rotten").unwrap();
    let reading = store.blob(&digest).unwrap().unwrap();
    let mut writer = store.try_replace(&digest).unwrap().unwrap();
    writer.write_all(b"sound").unwrap();
    writer.commit().unwrap();
    assert_eq!(&*store.blob(&digest).unwrap().unwrap().read().unwrap(), b"sound");
    reading.verify().unwrap_err();
}

#[test]
fn sha512_blobs_have_their_own_directory() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let mut hasher = kiln_oci::Hasher::new(kiln_oci::Algorithm::Sha512);
    hasher.update(b"long");
    let digest = hasher.finish();
    store.put_as(&digest, b"long").unwrap();
    assert!(store.blob_path(&digest).starts_with(dir.path().join("blobs/sha512")));
    store.blob(&digest).unwrap().unwrap().verify().unwrap();
    assert_eq!(store.blobs().unwrap(), [digest]);
}

#[test]
fn everybody_may_read_what_is_committed() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(&dir.path().join("new"));
    let digest = store.put(b"public").unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&store.blob_path(&digest)), 0o644);
    assert_eq!(mode(&dir.path().join("new/index.json")), 0o644);
    assert_eq!(mode(&dir.path().join("new")), 0o755);
}

#[test]
fn the_directories_of_a_volume_are_as_open_as_its_root() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o2775)).unwrap();
    volume(dir.path());
    for directory in ["blobs/sha256", "kiln/locks", "kiln/tmp", "kiln/unpacked/sha256"] {
        let mode = std::fs::metadata(dir.path().join(directory)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o775, "{directory}");
    }
}

#[test]
fn an_empty_directory_is_an_empty_store() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::<ReadOnly>::open(dir.path()).unwrap();
    assert!(store.blob(&Digest::of(b"")).unwrap().is_none());
    assert!(store.index().unwrap().manifests.is_empty());
    let error = Store::<ReadOnly>::open(&dir.path().join("absent")).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}

#[test]
fn an_empty_blob_is_a_blob() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let digest = store.put(b"").unwrap();
    assert_eq!(store.blob(&digest).unwrap().unwrap().verify().unwrap(), 0);
}

#[test]
fn a_scratch_blob_is_there_although_a_child_process_has_its_writers_lock() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), Durability::Scratch).unwrap();
    let digest = store.put(b"layer").unwrap();
    // As a process that was started while the blob was written: it has the lock until it runs its program.
    let held = std::fs::File::open(store.blob_path(&digest)).unwrap();
    held.lock().unwrap();
    assert!(store.blob(&digest).unwrap().is_some());
}

#[test]
fn what_was_written_ahead_counts_once_it_is_taken_in() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let bytes = large();
    let digest = Digest::of(&bytes);
    let Resume::Partial(mut writer) = store.resume(&digest).unwrap() else { panic!("nothing is there") };
    writer.write_all(&bytes[..1000]).unwrap();
    writer.write_ahead(5000, &bytes[5000..7000]).unwrap();
    writer.write_ahead(1000, &bytes[1000..5000]).unwrap();
    assert_eq!(writer.digest(), Digest::of(&bytes[..1000]));
    writer.take_in(6000).unwrap();
    assert_eq!((writer.position(), writer.digest()), (6000, Digest::of(&bytes[..6000])));
    writer.write_ahead(8_000_000, &bytes[8_000_000..]).unwrap();
    writer.forget_ahead().unwrap();
    writer.write_all(&bytes[6000..]).unwrap();
    assert_eq!(writer.commit().unwrap(), digest);
}

#[test]
fn a_download_that_was_killed_with_gaps_in_it_goes_on_before_the_first() {
    let _undisturbed = undisturbed();
    let dir = tempfile::tempdir().unwrap();
    let store = volume(dir.path());
    let bytes = large();
    let digest = Digest::of(&bytes);
    let begin = || match store.resume(&digest).unwrap() {
        Resume::Partial(writer) => writer,
        Resume::Present(_) => panic!("it is not there"),
    };
    let mut writer = begin();
    writer.write_all(&bytes[..3_000_100]).unwrap();
    // No mebibyte is whole behind this, and the last one is.
    writer.write_ahead(8_000_000, &bytes[8_000_000..]).unwrap();
    drop(writer);
    let mut writer = begin();
    let position = usize::try_from(writer.position()).unwrap();
    assert!((1 << 20..=3_000_100).contains(&position), "{position}");
    assert_eq!(writer.digest(), Digest::of(&bytes[..position]));
    writer.write_all(&bytes[position..]).unwrap();
    assert_eq!(writer.commit().unwrap(), digest);
}
