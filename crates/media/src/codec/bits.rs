//! Reads bits, most significant first; `None` once they run out.

pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Bits<'a> {
        Bits { bytes, at: 0 }
    }

    /// An unsigned number of `n` bits, at most 32.
    pub(super) fn u(&mut self, n: u32) -> Option<u32> {
        (0..n).try_fold(0, |value, _| Some(value << 1 | self.bit()?))
    }

    pub(super) fn flag(&mut self) -> Option<bool> {
        Some(self.bit()? == 1)
    }

    pub(super) fn skip(&mut self, n: usize) -> Option<()> {
        self.at = self.at.checked_add(n).filter(|&at| at <= self.bytes.len() * 8)?;
        Some(())
    }

    pub(super) fn align(&mut self) {
        self.at = self.at.next_multiple_of(8);
    }

    /// An Exp-Golomb number (H.264 §9.1, H.265 §9.2; `uvlc` of AV1 §4.10.3).
    pub(super) fn ue(&mut self) -> Option<u32> {
        let mut zeros = 0;
        while self.bit()? == 0 {
            zeros += 1;
        }
        let rest = (zeros < 32).then(|| self.u(zeros))??;
        Some((1 << zeros) - 1 + rest)
    }

    /// A signed Exp-Golomb number.
    pub(super) fn se(&mut self) -> Option<i32> {
        let n = self.ue()?;
        let half = (n / 2 + n % 2) as i32;
        Some(if n % 2 == 1 { half } else { -half })
    }

    fn bit(&mut self) -> Option<u32> {
        let byte = *self.bytes.get(self.at / 8)?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Some(bit.into())
    }
}
