//! The databases in `tests/fixtures` were written by rpm 4.18 (SQLite) and Berkeley DB 5.3's loader (both orders of
//! bytes): two packages, of which the first has a long description and so more bytes than a page. In the SQLite one, the
//! second is there nineteen times, so that its table is a tree.

use std::io::Read as _;

use super::*;

fn fixture(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    bytes
}

fn check(found: &[Package]) {
    let big = found.iter().find(|package| package.name == "kiln-fixture").unwrap();
    assert_eq!((big.version.as_str(), big.epoch), ("1.2.3-4.fc40", Some(2)));
    assert_eq!(big.architecture.as_deref(), Some("x86_64"));
    assert_eq!(big.upstream.as_deref(), Some("kiln-fixture-1.2.3-4.fc40.src.rpm"));
    assert_eq!(big.supplier.as_deref(), Some("Kiln Test Suite"));
    let small = found.iter().find(|package| package.name == "small-fixture").unwrap();
    assert_eq!((small.version.as_str(), small.epoch), ("0.1-1", None));
    assert_eq!(small.license.as_deref(), Some("GPLv2+"));
}

#[test]
fn a_database_of_sqlite_s_is_read_with_overflow_pages_and_inner_pages() {
    let found = packages(&fixture("rpmdb.sqlite.gz")).unwrap();
    assert_eq!(found.len(), 20);
    check(&found);
}

#[test]
fn a_database_of_berkeley_s_is_read_in_both_orders_of_bytes() {
    for name in ["Packages.bdb.gz", "Packages.big-endian.bdb.gz"] {
        let found = packages(&fixture(name)).unwrap();
        assert_eq!(found.len(), 2, "{name}");
        check(&found);
    }
}

/// As rpmpkg.c of RPM writes it: a page of slots, then blobs with a head and a tail, at multiples of sixteen bytes.
fn ndb(headers: &[Vec<u8>]) -> Vec<u8> {
    let word = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
    let mut file =
        [b"RpmP".as_slice(), &word(0), &word(1), &word(1), &word(headers.len() + 1), &[0; 12]].concat();
    let mut blobs = Vec::new();
    for slot in 2..256 {
        let number = slot - 1;
        let header = headers.get(slot - 2).filter(|header| !header.is_empty());
        let start = header.map_or(0, |_| 256 + blobs.len() / 16);
        let number = if header.is_some() { number } else { 0 };
        if let Some(header) = header {
            blobs.extend([b"BlbS".as_slice(), &word(number), &word(7), &word(header.len()), header].concat());
            blobs.resize(blobs.len().next_multiple_of(16) + 16, 0);
        }
        file.extend([b"Slot".as_slice(), &word(number), &word(start), &word(1)].concat());
    }
    file.extend(blobs);
    file
}

#[test]
fn a_database_of_rpm_s_own_format_is_read_and_its_free_slots_passed_over() {
    let headers = bdb::headers(&fixture("Packages.bdb.gz")).unwrap();
    let found = packages(&ndb(&[headers[0].clone(), Vec::new(), headers[1].clone()])).unwrap();
    assert_eq!(found.len(), 2);
    check(&found);
}

#[test]
fn damage_is_an_error_or_fewer_packages_and_never_a_panic() {
    let headers = bdb::headers(&fixture("Packages.bdb.gz")).unwrap();
    for whole in [fixture("rpmdb.sqlite.gz"), fixture("Packages.bdb.gz"), ndb(&headers)] {
        for step in 0..400 {
            let mut bytes = whole.clone();
            // Spread over the file, denser at its beginning.
            let at = (step * step * 7) % bytes.len();
            bytes[at] ^= 0xff;
            drop(packages(&bytes));
            drop(packages(&whole[..at]));
        }
    }
    assert!(packages(b"neither of them").is_err());
}

#[test]
fn packages_that_lie_in_each_other_are_refused() {
    let said = |bytes: &[u8]| packages(bytes).unwrap_err().to_string();
    // Every slot says where the same package is.
    let headers = bdb::headers(&fixture("Packages.bdb.gz")).unwrap();
    let mut bytes = ndb(&headers);
    for slot in 3..256 {
        bytes.copy_within(32..48, slot * 16);
    }
    assert!(said(&bytes).contains("lie in each other"), "{}", said(&bytes));
    // Every value of a page is the same one: those of the page with most.
    let mut bytes = fixture("Packages.bdb.gz");
    let size = u32::from_le_bytes(bytes[20..24].try_into().unwrap()) as usize;
    for page in bytes.chunks_exact_mut(size).filter(|page| matches!(page[25], 2 | 13)) {
        let off_page = (0..usize::from(u16::from_le_bytes([page[20], page[21]])) / 2).find(|pair| {
            let place = 26 + 4 * pair + 2;
            page[usize::from(u16::from_le_bytes([page[place], page[place + 1]]))] == 3
        });
        if let Some(pair) = off_page {
            let end = u16::try_from(size / 4).unwrap();
            page[20..22].copy_from_slice(&(end & !1).to_le_bytes());
            let item = page[26 + 4 * pair..30 + 4 * pair].to_vec();
            for pair in 0..usize::from(end) / 2 - 8 {
                page[26 + 4 * pair..30 + 4 * pair].copy_from_slice(&item);
            }
        }
    }
    assert!(said(&bytes).contains("lie in each other"), "{}", said(&bytes));
    // Every cell of a leaf is the same record.
    let mut bytes = fixture("rpmdb.sqlite.gz");
    let size = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    for page in bytes[size..].chunks_exact_mut(size).filter(|page| page[0] == 13) {
        let cell = page[8..10].to_vec();
        page[3..5].copy_from_slice(&400_u16.to_be_bytes());
        for place in 1..400 {
            page[8 + 2 * place..10 + 2 * place].copy_from_slice(&cell);
        }
    }
    assert!(said(&bytes).contains("lie in each other"), "{}", said(&bytes));
}
