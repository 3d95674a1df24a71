//! Tables that decode Huffman codes (RFC 1951, section 3.2.2).
//!
//! A table is indexed by the next bits of the stream. What a symbol means lies in the entry itself, so that decoding it
//! takes one lookup. An entry:
//!
//! | bits | what they say |
//! |---|---|
//! | 0 to 7 | how many bits the symbol takes, its extra bits included |
//! | 8 to 11 | how many of them are its code |
//! | 13 | with bit 15: the end of the block |
//! | 14 | with bit 15: the code is longer than the index, and goes on in a subtable |
//! | 15 | neither a literal nor a length nor a distance; alone: no code |
//! | 16 to 30 | the literal, the least length or distance, or where the subtable begins |
//! | 31 | a literal |
//!
//! Of an entry that leads to a subtable, bits 0 to 7 say how many bits index it.

pub(crate) const LITERAL: u32 = 1 << 31;
pub(crate) const SPECIAL: u32 = 1 << 15;
pub(crate) const SUBTABLE: u32 = 1 << 14;
pub(crate) const END: u32 = 1 << 13;

/// The longest code of a literal, length or distance, in bits.
pub(crate) const LONGEST: usize = 15;

/// How many symbols an alphabet has at most.
const SYMBOLS: usize = 288;

/// A table whose first `1 << BITS` entries are indexed by the stream's bits. `SIZE` is a power of two, so that an index is
/// kept inside by a mask, and at least what those entries and all subtables take.
pub(crate) struct Table<const BITS: u32, const SIZE: usize> {
    pub(crate) entries: [u32; SIZE],
}

/// Of literals and lengths.
pub(crate) type Literals = Table<11, 4096>;
/// Of distances.
pub(crate) type Distances = Table<8, 1024>;

impl<const BITS: u32, const SIZE: usize> Table<BITS, SIZE> {
    /// Knows no code.
    pub(crate) fn new() -> Self {
        Self { entries: [SPECIAL; SIZE] }
    }

    /// The entry for the stream's next bits, subtables included.
    pub(crate) fn find(&self, bits: u64) -> u32 {
        let entry = self.entries[Self::index(bits)];
        if is_subtable(entry) { self.entries[Self::index_below(entry, bits)] } else { entry }
    }

    /// Where the entry for the next bits is.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "a call for each symbol would double its time")]
    #[expect(clippy::cast_possible_truncation, reason = "the mask leaves few bits")]
    pub(crate) fn index(bits: u64) -> usize {
        bits as usize & ((1 << BITS) - 1) & (SIZE - 1)
    }

    /// Where it is in the subtable that `entry` leads to.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "as above")]
    #[expect(clippy::cast_possible_truncation, reason = "the masks leave few bits")]
    pub(crate) fn index_below(entry: u32, bits: u64) -> usize {
        let within = (bits >> BITS) as usize & ((1 << (entry & 15)) - 1);
        ((entry >> 16) as usize + within) & (SIZE - 1)
    }

    /// Fills the table for codes of these lengths, in bits. `meanings` is what an entry says of each symbol, its code
    /// aside.
    ///
    /// `None` if these are no code: more than there is room for, or bits that mean nothing. As in zlib, a single code of
    /// one bit is one, and no code at all; where `complete` is set they aren't.
    pub(crate) fn fill(&mut self, lengths: &[u8], meanings: &[u32], complete: bool) -> Option<()> {
        let mut counts = [0_usize; LONGEST + 1];
        for length in lengths {
            counts[usize::from(*length & 15)] += 1;
        }
        let (mut left, mut longest) = (1_i64, 0);
        // Where the symbols of each length begin, in the order of their codes.
        let mut next = [0_usize; LONGEST + 2];
        for length in 1..=LONGEST {
            left = 2 * left - i64::try_from(counts[length]).ok()?;
            if left < 0 {
                return None;
            }
            if counts[length] > 0 {
                longest = length;
            }
            next[length + 1] = next[length] + counts[length];
        }
        if left > 0 && (longest > 1 || complete) {
            return None;
        }
        let mut sorted = [0_u32; SYMBOLS];
        let mut symbols = 0;
        for (length, meaning) in lengths.iter().zip(meanings) {
            if *length > 0 {
                let at = &mut next[usize::from(*length & 15)];
                sorted[*at] = *meaning;
                *at += 1;
                symbols += 1;
            }
        }
        let sorted = &sorted[..symbols];
        if left > 0 {
            self.fill_with_one(sorted.first().copied());
            return Some(());
        }
        let (short, code) = self.fill_short(sorted, &counts);
        self.fill_long(&sorted[short..], counts, code)
    }

    /// The entries of a code with one symbol, or with none.
    fn fill_with_one(&mut self, meaning: Option<u32>) {
        let bottom = &mut self.entries[..1 << BITS];
        bottom.fill(SPECIAL);
        if let Some(meaning) = meaning {
            for entry in bottom.iter_mut().step_by(2) {
                *entry = meaning + coded(1);
            }
        }
    }

    /// The entries of codes that are no longer than the index. Gives how many there are, and the code that follows.
    ///
    /// A code's first bit is the lowest of the index. So a code of `n` bits stands at every index that ends in it: the
    /// part that is filled doubles for each bit more.
    fn fill_short(&mut self, sorted: &[u32], counts: &[usize]) -> (usize, usize) {
        let (mut code, mut done) = (0, 0);
        for length in 1..=BITS as usize {
            let half = 1 << (length - 1);
            self.entries.copy_within(..half, half);
            for meaning in &sorted[done..done + counts[length]] {
                self.entries[code & (SIZE - 1)] = meaning + coded(length);
                code = following(code, length);
            }
            done += counts[length];
        }
        (done, code)
    }

    /// The entries of longer codes: a subtable for all that begin alike.
    fn fill_long(&mut self, sorted: &[u32], mut counts: [usize; LONGEST + 1], mut code: usize) -> Option<()> {
        let bits = BITS as usize;
        let mut length = bits + 1;
        let (mut beginning, mut subtable) = (usize::MAX, 0..1 << BITS);
        for meaning in sorted {
            while *counts.get(length)? == 0 {
                length += 1;
            }
            if code & ((1 << BITS) - 1) != beginning {
                beginning = code & ((1 << BITS) - 1);
                // Wide enough for the longest code in it: codes come in the order of their lengths, so what does not fit
                // into the room that is left begins otherwise.
                let (mut width, mut room) = (length - bits, 1_usize << (length - bits));
                while let Some(more) = room.checked_sub(counts[bits + width])
                    && more > 0
                    && bits + width < LONGEST
                {
                    width += 1;
                    room = 2 * more;
                }
                subtable = subtable.end..subtable.end + (1 << width);
                let start = u32::try_from(subtable.start).ok()?;
                self.entries[beginning & (SIZE - 1)] =
                    start << 16 | SPECIAL | SUBTABLE | u32::try_from(width).ok()?;
            }
            let entries = self.entries.get_mut(subtable.clone())?;
            for entry in entries.iter_mut().skip(code >> BITS).step_by(1 << (length - bits)) {
                *entry = meaning + coded(length);
            }
            counts[length] -= 1;
            code = following(code, length);
        }
        Some(())
    }
}

pub(crate) const fn is_subtable(entry: u32) -> bool {
    entry & (SPECIAL | SUBTABLE) == SPECIAL | SUBTABLE
}

/// What the length of its code adds to an entry.
#[expect(clippy::cast_possible_truncation, reason = "at most LONGEST")]
const fn coded(length: usize) -> u32 {
    (length as u32) << 8 | length as u32
}

/// The code of `length` bits after `code`: one more, counted with the lowest bit first. After the last comes the first.
const fn following(code: usize, length: usize) -> usize {
    let zeros = !code & ((1 << length) - 1);
    if zeros == 0 {
        return 0;
    }
    // The highest zero becomes a one, and the ones above it become zeros.
    let bit = 1 << (usize::BITS - 1 - zeros.leading_zeros());
    code & (bit - 1) | bit
}

const LENGTHS: [(u32, u32); 29] = {
    let mut all = [(258, 0); 29];
    let (mut symbol, mut least) = (0_u32, 3);
    while symbol < 28 {
        let extra = if symbol < 8 { 0 } else { symbol / 4 - 1 };
        all[symbol as usize] = (least, extra);
        least += 1 << extra;
        symbol += 1;
    }
    all
};

/// What the symbols of literals and lengths mean (section 3.2.5). The last two stand in no stream.
pub(crate) const LITERALS: [u32; 288] = {
    let mut all = [SPECIAL; 288];
    let mut symbol = 0_u32;
    while symbol < 256 {
        all[symbol as usize] = LITERAL | symbol << 16;
        symbol += 1;
    }
    all[256] = SPECIAL | END;
    let mut length = 0;
    while length < 29 {
        let (least, extra) = LENGTHS[length];
        all[257 + length] = least << 16 | extra;
        length += 1;
    }
    all
};

/// What the symbols of distances mean. The last two stand in no stream.
pub(crate) const DISTANCES: [u32; 32] = {
    let mut all = [SPECIAL; 32];
    let (mut symbol, mut least) = (0_u32, 1);
    while symbol < 30 {
        let extra = if symbol < 4 { 0 } else { symbol / 2 - 1 };
        all[symbol as usize] = least << 16 | extra;
        least += 1 << extra;
        symbol += 1;
    }
    all
};

/// What the symbols mean in which a block's code lengths are written (section 3.2.7): themselves.
pub(crate) const CODE_LENGTHS: [u32; 19] = {
    let mut all = [0; 19];
    let mut symbol = 0_u32;
    while symbol < 19 {
        all[symbol as usize] = symbol << 16;
        symbol += 1;
    }
    all
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_distances_are_those_of_the_rfc() {
        let base = |entry: u32| (entry >> 16, entry & 0xff);
        assert_eq!(base(LITERALS[257]), (3, 0));
        assert_eq!(base(LITERALS[265]), (11, 1));
        assert_eq!(base(LITERALS[273]), (35, 3));
        assert_eq!(base(LITERALS[284]), (227, 5));
        assert_eq!(base(LITERALS[285]), (258, 0));
        assert_eq!(base(DISTANCES[3]), (4, 0));
        assert_eq!(base(DISTANCES[4]), (5, 1));
        assert_eq!(base(DISTANCES[29]), (24577, 13));
    }

    #[test]
    fn the_example_of_the_rfc() {
        // Section 3.2.2: A to H with lengths 3, 3, 3, 3, 3, 2, 4, 4.
        let mut table = Table::<2, 16>::new();
        let meanings: Vec<u32> = (0..8).map(|symbol| symbol << 16).collect();
        table.fill(&[3, 3, 3, 3, 3, 2, 4, 4], &meanings, true).unwrap();
        let codes = ["010", "011", "100", "101", "110", "00", "1110", "1111"];
        for (symbol, code) in codes.iter().enumerate() {
            for after in 0..4_u64 {
                let bits = code.bytes().rev().fold(after, |bits, bit| bits << 1 | u64::from(bit == b'1'));
                let entry = table.find(bits);
                assert_eq!((entry >> 16) as usize, symbol, "{code}");
                assert_eq!((entry & 0xff) as usize, code.len(), "{code}");
            }
        }
    }

    #[test]
    fn lengths_that_are_no_code_are_refused() {
        let mut table = Table::<7, 128>::new();
        assert!(table.fill(&[1, 1, 1], &CODE_LENGTHS, false).is_none());
        assert!(table.fill(&[2, 2, 2], &CODE_LENGTHS, false).is_none());
        assert!(table.fill(&[1], &CODE_LENGTHS, true).is_none());
        assert!(table.fill(&[0, 1], &CODE_LENGTHS, false).is_some());
        assert_eq!(table.find(0) >> 16, 1);
        assert_eq!(table.find(1), SPECIAL);
        assert!(table.fill(&[], &CODE_LENGTHS, false).is_some());
        assert_eq!(table.find(0), SPECIAL);
    }

    /// The lengths of a complete code: symbols are split in two until there are as many as `splits` asks for.
    fn complete(splits: &[usize]) -> Vec<u8> {
        let mut lengths = vec![1, 1];
        for split in splits {
            let at = split % lengths.len();
            if usize::from(lengths[at]) < LONGEST {
                lengths[at] += 1;
                lengths.push(lengths[at]);
            }
        }
        lengths
    }

    /// The codes, first bit lowest, as section 3.2.2 gives them out.
    fn codes(lengths: &[u8]) -> Vec<u64> {
        let mut code = 0_u64;
        let mut codes = vec![0; lengths.len()];
        for length in 1..=LONGEST {
            for (symbol, _) in lengths.iter().enumerate().filter(|(_, l)| usize::from(**l) == length) {
                codes[symbol] = code.reverse_bits() >> (64 - length);
                code += 1;
            }
            code <<= 1;
        }
        codes
    }

    proptest::proptest! {
        #[test]
        fn every_code_is_found(
            splits in proptest::collection::vec(0_usize..1 << 20, 0..284),
            after in 0_u64..1 << 40,
        ) {
            let lengths = complete(&splits);
            let mut literals = Table::<11, 4096>::new();
            literals.fill(&lengths, &LITERALS, true).unwrap();
            let mut small = Table::<8, 4096>::new();
            small.fill(&lengths, &LITERALS, true).unwrap();
            for (symbol, code) in codes(&lengths).into_iter().enumerate() {
                let bits = after << lengths[symbol] | code;
                let entry = LITERALS[symbol] + coded(lengths[symbol].into());
                assert_eq!(literals.find(bits), entry);
                assert_eq!(small.find(bits), entry);
            }
        }

        #[test]
        fn the_deepest_codes_fit(comb in 0_usize..14, splits in proptest::collection::vec(0_usize..1 << 20, 28)) {
            // As deep as it goes first, and the rest wherever: codes that share few beginnings take most subtables.
            let lengths = complete(&[vec![0; comb], splits[comb..].to_vec()].concat());
            assert!(Table::<8, 1024>::new().fill(&lengths, &DISTANCES, true).is_some());
        }
    }
}
