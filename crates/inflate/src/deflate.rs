//! DEFLATE streams (RFC 1951), decoded piece by piece.

use crate::Damage;
use crate::huffman::{
    CODE_LENGTHS, DISTANCES, Distances, END, LITERAL, LITERALS, LONGEST, Literals, SPECIAL, Table,
};
use crate::piece::{BUFFER, Buffer};

/// Decodes one stream.
///
/// What it decodes goes into a buffer of the caller's, in which up to [`WINDOW`](crate::WINDOW) bytes from before must
/// stand in front, since the stream repeats them.
pub(crate) struct Inflater {
    /// Bits of the input that are not decoded yet, the next one lowest, and how many. Those above are zero, but for
    /// the time of [`quick`](Self::quick).
    pub(crate) bits: u64,
    pub(crate) count: u32,
    pub(crate) state: State,
    pub(crate) literals: Literals,
    pub(crate) distances: Distances,
    /// This block is the last.
    last: bool,
    /// The tables are those of blocks with fixed codes.
    fixed: bool,
    lengths: Lengths,
}

/// What comes next in the stream.
pub(crate) enum State {
    Block,
    StoredLength,
    /// So many bytes as they are.
    Stored(usize),
    /// How many codes there are of each kind.
    Counts,
    /// The lengths of the codes in which the code lengths are written; so many are known.
    Preamble(usize),
    /// The code lengths; so many are known.
    Lengths(usize),
    Symbols,
    Over,
}

/// The code lengths of a block.
struct Lengths {
    /// Of literals and lengths, then of distances.
    all: [u8; 320],
    literals: usize,
    distances: usize,
    /// Of the codes in which those are written.
    preamble: usize,
    codes: Table<7, 128>,
}

/// The places of the preamble (section 3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// The most bits that a length and its distance take.
const LENGTH_AND_DISTANCE: u32 = 48;

/// How much room there must be, in bytes, for decoding to go on: for three literals, the longest match, and what copying it
/// writes beyond its end.
pub(crate) const ROOM: usize = 3 + 258 + 32;

/// Why decoding stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// All input is used, and the stream goes on.
    Input,
    /// There is less than [`ROOM`] in the buffer.
    Full,
    /// The stream has ended.
    Over,
}

/// What is decoded at a time.
pub(crate) struct Run<'i, 'o> {
    /// What is left of the input.
    pub(crate) input: &'i [u8],
    pub(crate) out: &'o mut Buffer,
    /// Where the next byte goes.
    pub(crate) at: usize,
    /// Where in `out` the stream's bytes begin, or those that are still there of them.
    pub(crate) floor: usize,
}

impl Run<'_, '_> {
    /// The room that is left.
    pub(crate) fn room(&self) -> usize {
        BUFFER - self.at
    }
}

impl Inflater {
    /// For the beginning of a stream.
    pub(crate) fn new() -> Self {
        Self {
            bits: 0,
            count: 0,
            state: State::Block,
            literals: Literals::new(),
            distances: Distances::new(),
            last: false,
            fixed: false,
            lengths: Lengths { all: [0; 320], literals: 0, distances: 0, preamble: 0, codes: Table::new() },
        }
    }

    /// For the beginning of another stream.
    pub(crate) fn restart(&mut self) {
        (self.bits, self.count) = (0, 0);
        (self.state, self.last) = (State::Block, false);
    }

    /// The whole bytes that were read beyond the stream's end: at most 7.
    pub(crate) fn beyond(&mut self) -> impl Iterator<Item = u8> + use<> {
        let bytes = (self.bits >> (self.count % 8)).to_le_bytes();
        let count = self.count / 8;
        (self.bits, self.count) = (0, 0);
        bytes.into_iter().take(count as usize)
    }

    /// Decodes until something is missing.
    pub(crate) fn run(&mut self, run: &mut Run<'_, '_>) -> Result<Stop, Damage> {
        loop {
            let stop = match self.state {
                State::Block => self.block(run)?,
                State::StoredLength => self.stored_length(run)?,
                State::Stored(left) => self.stored(run, left),
                State::Counts => self.counts(run)?,
                State::Preamble(known) => self.preamble(run, known)?,
                State::Lengths(known) => self.code_lengths(run, known)?,
                State::Symbols => self.symbols(run)?,
                State::Over => Some(Stop::Over),
            };
            if let Some(stop) = stop {
                return Ok(stop);
            }
        }
    }

    /// Sees to it that `count` bits are there, at most 56. Whether they are.
    fn need(&mut self, run: &mut Run<'_, '_>, count: u32) -> bool {
        while self.count < count {
            let Some((byte, rest)) = run.input.split_first() else { return false };
            self.bits |= u64::from(*byte) << self.count;
            self.count += 8;
            run.input = rest;
        }
        true
    }

    /// The next `count` bits, at most 16, which are there.
    #[expect(clippy::cast_possible_truncation, reason = "the mask leaves 16 bits")]
    fn take(&mut self, count: u32) -> usize {
        let value = self.bits & ((1 << count) - 1);
        self.bits >>= count;
        self.count -= count;
        value as usize
    }

    /// The header of a block (section 3.2.3).
    fn block(&mut self, run: &mut Run<'_, '_>) -> Result<Option<Stop>, Damage> {
        if self.last {
            self.state = State::Over;
            return Ok(None);
        }
        if !self.need(run, 3) {
            return Ok(Some(Stop::Input));
        }
        self.last = self.take(1) == 1;
        self.state = match self.take(2) {
            0 => {
                self.take(self.count % 8);
                State::StoredLength
            }
            1 => {
                self.fix()?;
                State::Symbols
            }
            2 => State::Counts,
            _ => return Err(Damage::Block),
        };
        Ok(None)
    }

    /// The fixed codes (section 3.2.6).
    fn fix(&mut self) -> Result<(), Damage> {
        if !self.fixed {
            let mut lengths = [8; 288];
            lengths[144..256].fill(9);
            lengths[256..280].fill(7);
            self.literals.fill(&lengths, &LITERALS, true).ok_or(Damage::Codes)?;
            self.distances.fill(&[5; 32], &DISTANCES, true).ok_or(Damage::Codes)?;
            self.fixed = true;
        }
        Ok(())
    }

    fn stored_length(&mut self, run: &mut Run<'_, '_>) -> Result<Option<Stop>, Damage> {
        if !self.need(run, 32) {
            return Ok(Some(Stop::Input));
        }
        let (length, complement) = (self.take(16), self.take(16));
        if length != !complement & 0xffff {
            return Err(Damage::StoredLength);
        }
        self.state = State::Stored(length);
        Ok(None)
    }

    fn stored(&mut self, run: &mut Run<'_, '_>, mut left: usize) -> Option<Stop> {
        // Whole bytes that were read ahead come first.
        while left > 0 && self.count > 0 && run.room() > 0 {
            run.out[run.at] = self.take(8).to_le_bytes()[0];
            run.at += 1;
            left -= 1;
        }
        if self.count == 0 {
            let length = left.min(run.input.len()).min(run.room());
            let (now, later) = run.input.split_at(length);
            run.out[run.at..run.at + length].copy_from_slice(now);
            run.input = later;
            run.at += length;
            left -= length;
        }
        self.state = if left == 0 { State::Block } else { State::Stored(left) };
        (left > 0).then_some(if run.room() == 0 { Stop::Full } else { Stop::Input })
    }

    fn counts(&mut self, run: &mut Run<'_, '_>) -> Result<Option<Stop>, Damage> {
        if !self.need(run, 14) {
            return Ok(Some(Stop::Input));
        }
        let (literals, distances, preamble) = (self.take(5) + 257, self.take(5) + 1, self.take(4) + 4);
        if literals > 286 || distances > 30 {
            return Err(Damage::Codes);
        }
        let lengths = &mut self.lengths;
        (lengths.literals, lengths.distances, lengths.preamble) = (literals, distances, preamble);
        lengths.all[..ORDER.len()].fill(0);
        self.state = State::Preamble(0);
        Ok(None)
    }

    fn preamble(&mut self, run: &mut Run<'_, '_>, known: usize) -> Result<Option<Stop>, Damage> {
        for (number, symbol) in ORDER.into_iter().enumerate().take(self.lengths.preamble).skip(known) {
            if !self.need(run, 3) {
                self.state = State::Preamble(number);
                return Ok(Some(Stop::Input));
            }
            self.lengths.all[symbol] = self.take(3).to_le_bytes()[0];
        }
        let Lengths { all, codes, .. } = &mut self.lengths;
        codes.fill(&all[..ORDER.len()], &CODE_LENGTHS, true).ok_or(Damage::Codes)?;
        self.state = State::Lengths(0);
        Ok(None)
    }

    fn code_lengths(&mut self, run: &mut Run<'_, '_>, mut known: usize) -> Result<Option<Stop>, Damage> {
        let (literals, all) = (self.lengths.literals, self.lengths.literals + self.lengths.distances);
        while known < all {
            // A code has 7 bits at most, and as many may follow it. At the end of the input there may be fewer.
            self.need(run, 14);
            let entry = self.lengths.codes.find(self.bits);
            let (size, symbol) = (entry & 0xff, entry >> 16);
            let (extra, least) = match symbol {
                16 => (2, 3),
                17 => (3, 3),
                18 => (7, 11),
                _ => (0, 1),
            };
            if size + extra > self.count {
                self.state = State::Lengths(known);
                return Ok(Some(Stop::Input));
            }
            self.take(size);
            let times = self.take(extra) + least;
            let length = match symbol {
                16 => self.lengths.all[known.checked_sub(1).ok_or(Damage::Codes)?],
                17 | 18 => 0,
                length => length.to_le_bytes()[0],
            };
            let these = known..known + times;
            if these.end > all {
                return Err(Damage::Codes);
            }
            self.lengths.all[these].fill(length);
            known += times;
        }
        let (of_literals, of_distances) = self.lengths.all[..all].split_at(literals);
        if of_literals[256] == 0 {
            return Err(Damage::Codes);
        }
        self.fixed = false;
        self.literals.fill(of_literals, &LITERALS, false).ok_or(Damage::Codes)?;
        self.distances.fill(of_distances, &DISTANCES, false).ok_or(Damage::Codes)?;
        self.state = State::Symbols;
        Ok(None)
    }

    fn symbols(&mut self, run: &mut Run<'_, '_>) -> Result<Option<Stop>, Damage> {
        if run.room() < ROOM {
            return Ok(Some(Stop::Full));
        }
        if run.is_ample() {
            return self.quick(run).map(|()| None);
        }
        self.need(run, LENGTH_AND_DISTANCE);
        let entry = self.literals.find(self.bits);
        let size = entry & 0xff;
        if entry & (SPECIAL | END) == SPECIAL {
            return self.no_code(0);
        }
        if size > self.count {
            return Ok(Some(Stop::Input));
        }
        if entry & LITERAL != 0 {
            run.out[run.at] = (entry >> 16).to_le_bytes()[0];
            run.at += 1;
            self.take(size);
            return Ok(None);
        }
        if entry & END != 0 {
            self.take(size);
            self.state = State::Block;
            return Ok(None);
        }
        let after = self.bits >> size;
        let far = self.distances.find(after);
        if far & SPECIAL != 0 {
            return self.no_code(size);
        }
        if size + (far & 0xff) > self.count {
            return Ok(Some(Stop::Input));
        }
        let (length, distance) = (value(entry, self.bits), value(far, after));
        if distance > run.at - run.floor {
            return Err(Damage::Distance);
        }
        self.bits = after >> (far & 0xff);
        self.count -= size + (far & 0xff);
        for at in run.at..run.at + length {
            run.out[at] = run.out[at - distance];
        }
        run.at += length;
        Ok(None)
    }

    /// What the bits after the next `skip` begin with is no code, unless it is one that lacks bits.
    fn no_code(&self, skip: u32) -> Result<Option<Stop>, Damage> {
        if self.count as usize >= skip as usize + LONGEST { Err(Damage::Code) } else { Ok(Some(Stop::Input)) }
    }
}

/// The length or distance of `entry`, with the extra bits that follow its code at the beginning of `bits`.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is a few instructions of the innermost loop")]
#[expect(clippy::cast_possible_truncation, reason = "at most 15 bits and 13 are added")]
pub(crate) fn value(entry: u32, bits: u64) -> usize {
    let extra = (bits & ((1 << (entry & 63)) - 1)) >> ((entry >> 8) & 15);
    (entry >> 16) as usize + extra as usize
}
