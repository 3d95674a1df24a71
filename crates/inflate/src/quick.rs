//! The innermost loop: symbols while there is so much input and room that none of them can run out.
//!
//! It works on local copies of the decoder's bits, and looks the next symbol up before it copies a match, so that the two
//! go on beside each other.

use crate::Damage;
use crate::deflate::{Inflater, ROOM, Run, State, value};
use crate::huffman::{Distances, END, LITERAL, Literals, SPECIAL, SUBTABLE};
use crate::piece::{BUFFER, Buffer};

/// How much input a turn wants: two refills.
const INPUT: usize = 16;

impl Run<'_, '_> {
    /// Whether there is enough for a turn.
    pub(crate) fn is_ample(&self) -> bool {
        self.input.len() >= INPUT && self.room() >= ROOM
    }
}

/// Bits that a symbol took. Only the lower six bits of the count mean something here: so the entry is taken away as a
/// whole.
macro_rules! took {
    ($bits:ident, $count:ident, $entry:ident) => {
        $bits >>= $entry & 63;
        $count = $count.wrapping_sub($entry);
    };
}

impl Inflater {
    /// Decodes symbols until input or room is scarce, or the block has ended. There is enough for one turn.
    #[inline(never)]
    #[expect(clippy::too_many_lines, reason = "one loop, whose parts share all of their variables")]
    pub(crate) fn quick(&mut self, run: &mut Run<'_, '_>) -> Result<(), Damage> {
        let (literals, distances) = (&self.literals.entries, &self.distances.entries);
        let literal = |bits| literals[Literals::index(bits)];
        let (mut bits, mut count, mut at, floor) = (self.bits, self.count, run.at, run.floor);
        let mut input = run.input;
        let out = &mut *run.out;
        let limit = BUFFER - ROOM;
        let mut damage = None;
        refill(&mut bits, &mut count, &mut input);
        let mut entry = literal(bits);
        // At the start of a turn there are at least 56 bits, and `entry` is for the first of them.
        loop {
            // Three literals in the table take 33 bits at most.
            if entry & LITERAL != 0 {
                took!(bits, count, entry);
                let first = byte(entry);
                entry = literal(bits);
                out[at] = first;
                at += 1;
                if entry & LITERAL != 0 {
                    took!(bits, count, entry);
                    let second = byte(entry);
                    entry = literal(bits);
                    out[at] = second;
                    at += 1;
                    if entry & LITERAL != 0 {
                        took!(bits, count, entry);
                        out[at] = byte(entry);
                        at += 1;
                        if at > limit || input.len() < INPUT {
                            break;
                        }
                        entry = literal(bits);
                        refill(&mut bits, &mut count, &mut input);
                        continue;
                    }
                }
                refill(&mut bits, &mut count, &mut input);
            }
            if entry & SPECIAL != 0 {
                if entry & SUBTABLE != 0 {
                    entry = literals[Literals::index_below(entry, bits)];
                }
                if entry & LITERAL != 0 {
                    took!(bits, count, entry);
                    out[at] = byte(entry);
                    at += 1;
                    if at > limit || input.len() < INPUT {
                        break;
                    }
                    refill(&mut bits, &mut count, &mut input);
                    entry = literal(bits);
                    continue;
                }
                if entry & SPECIAL != 0 {
                    if entry & END == 0 {
                        damage = Some(Damage::Code);
                    } else {
                        took!(bits, count, entry);
                        self.state = State::Block;
                    }
                    break;
                }
            }
            // A length takes 20 bits, its distance 28.
            let length = value(entry, bits);
            took!(bits, count, entry);
            let mut far = distances[Distances::index(bits)];
            if far & SPECIAL != 0 {
                if far & SUBTABLE != 0 {
                    far = distances[Distances::index_below(far, bits)];
                }
                if far & SPECIAL != 0 {
                    damage = Some(Damage::Code);
                    break;
                }
            }
            let distance = value(far, bits);
            took!(bits, count, far);
            if distance > at - floor {
                damage = Some(Damage::Distance);
                break;
            }
            let goes_on = input.len() >= INPUT;
            if goes_on {
                entry = literal(bits);
                refill(&mut bits, &mut count, &mut input);
            }
            copy(out, at, length, distance);
            at += length;
            if !goes_on || at > limit {
                break;
            }
        }
        count &= 63;
        (self.bits, self.count) = (bits & ((1 << count) - 1), count);
        (run.at, run.input) = (at, input);
        damage.map_or(Ok(()), Err)
    }
}

/// What a refill makes sure of: seven bytes' bits.
const WHOLE: u32 = 0b11_1000;

/// The literal of an entry.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is one instruction of the innermost loop")]
#[expect(clippy::cast_possible_truncation, reason = "the literal is the lower half of what is left")]
fn byte(entry: u32) -> u8 {
    (entry >> 16) as u8
}

/// Fills up to at least 56 bits. Above the ones that count stand bits that are next in the input: read again, they are
/// the same.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is a few instructions of the innermost loop")]
fn refill(bits: &mut u64, count: &mut u32, input: &mut &[u8]) {
    if let Some(word) = input.first_chunk() {
        *bits |= u64::from_le_bytes(*word) << (*count & 63);
        *input = &input[(!*count >> 3 & 7) as usize..];
        *count |= WHOLE;
    }
}

/// Copies a match, and up to 31 bytes more, which are written again.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is part of the innermost loop")]
fn copy(out: &mut Buffer, at: usize, length: usize, distance: usize) {
    let from = at - distance;
    if distance < 16 && distance < length {
        return repeat(out, at, length, distance);
    }
    // Most matches are short. A branch that is taken the same way most times costs less than a loop.
    copy_16(out, from, at);
    copy_16(out, from + 16, at + 16);
    let mut done = 32;
    while done < length {
        copy_16(out, from + done, at + done);
        done += 16;
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "it is two instructions of the innermost loop")]
fn copy_16(out: &mut Buffer, from: usize, to: usize) {
    if let Some(bytes) = out[from..].first_chunk::<16>().copied() {
        out[to..to + 16].copy_from_slice(&bytes);
    }
}

/// Copies a match that repeats what it writes, and begins less than 16 bytes back. Of a hundred matches one does.
#[cold]
#[inline(never)]
fn repeat(out: &mut Buffer, at: usize, length: usize, distance: usize) {
    // As many whole repetitions as 16 bytes hold.
    const STEPS: [usize; 16] = [16, 16, 16, 15, 16, 15, 12, 14, 16, 9, 10, 11, 12, 13, 14, 15];
    let mut bytes = [0; 16];
    bytes[..distance].copy_from_slice(&out[at - distance..at]);
    let mut word = u128::from_le_bytes(bytes);
    let mut width = 8 * distance;
    while width < 128 {
        word |= word << width;
        width *= 2;
    }
    let mut done = 0;
    while done < length {
        out[at + done..at + done + 16].copy_from_slice(&word.to_le_bytes());
        done += STEPS[distance & 15];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_match_repeats_what_it_wrote() {
        for distance in 1..70 {
            for length in 3..=258 {
                let out: &mut Buffer = &mut vec![0; BUFFER].try_into().unwrap();
                for (at, byte) in out[..100].iter_mut().enumerate() {
                    *byte = u8::try_from(at).unwrap();
                }
                let mut expected = out[..100].to_vec();
                for at in 100..100 + length {
                    expected.push(expected[at - distance]);
                }
                copy(out, 100, length, distance);
                assert_eq!(out[..100 + length], expected, "{length} from {distance} back");
            }
        }
    }
}
