//! Bytes on their way to a file: what is small is gathered, what is large is shared with the frames that have it.

use bytes::Bytes;

/// From so many bytes on, a part of its own costs less than a copy.
const SHARED: usize = 1024;

/// Parts that follow one another.
#[derive(Debug, Default)]
pub struct Parts {
    list: Vec<Bytes>,
    /// What is gathered behind the last of them.
    tail: Vec<u8>,
    len: usize,
}

impl Parts {
    /// Appends a copy.
    pub fn copy(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Appends bytes that may stay where they are.
    pub fn share(&mut self, bytes: &Bytes) {
        if bytes.len() < SHARED {
            return self.copy(bytes);
        }
        self.end_tail();
        self.list.push(bytes.clone());
        self.len += bytes.len();
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes all of them out.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.end_tail();
        self.len = 0;
        std::mem::take(&mut self.list)
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.list.push(std::mem::take(&mut self.tail).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_out_in_order_and_only_small_ones_are_copied() {
        let (small, large) = (Bytes::from_static(b"small"), Bytes::from(vec![7; SHARED]));
        let mut parts = Parts::default();
        parts.copy(b"head");
        parts.share(&small);
        parts.share(&large);
        parts.share(&small);
        assert_eq!(parts.len(), 4 + 5 + SHARED + 5);
        let list = parts.take();
        assert_eq!(list, [&b"headsmall"[..], &large, &small]);
        assert_eq!(list[1].as_ptr(), large.as_ptr());
        assert!(parts.is_empty() && parts.take().is_empty());
    }
}
