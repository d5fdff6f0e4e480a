//! The keys and values in memory, with a bound on what they take.

use alloc::boxed::Box;

use hashbrown::HashMap;

/// What an entry costs beside its bytes: its share of the table and of the heap's own
/// bookkeeping, estimated from above.
pub const ENTRY_OVERHEAD: usize = 128;

/// No room for another entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// All keys with their values.
#[derive(Debug)]
pub struct Store {
    entries: HashMap<Box<[u8]>, Box<[u8]>>,
    used: usize,
    limit: usize,
}

fn cost(key: &[u8], value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY_OVERHEAD
}

impl Store {
    /// An empty store for at most `limit` bytes, overhead included.
    pub fn new(limit: usize) -> Self {
        Self {
            entries: HashMap::new(),
            used: 0,
            limit,
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.entries.get(key).map(|value| &**value)
    }

    /// Whether [`Self::set`] of all these pairs would find room, taken one by one.
    ///
    /// # Errors
    /// There isn't.
    pub fn check_room<'a>(
        &self,
        pairs: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<(), Full> {
        // A key that is named twice is counted twice: an estimate from above.
        let (mut more, mut less) = (0, 0);
        for (key, value) in pairs {
            more += cost(key, value);
            less += self.get(key).map_or(0, |old| cost(key, old));
        }
        if more <= less || self.used.saturating_sub(less) + more <= self.limit {
            Ok(())
        } else {
            Err(Full)
        }
    }

    /// Sets a key. What shrinks is always taken, even in a full store.
    ///
    /// # Errors
    /// There is no room; nothing was changed.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Full> {
        self.check_room(core::iter::once((key, value)))?;
        match self.entries.get_mut(key) {
            Some(old) => {
                self.used = self.used - old.len() + value.len();
                if old.len() == value.len() {
                    old.copy_from_slice(value);
                } else {
                    *old = value.into();
                }
            }
            None => {
                self.used += cost(key, value);
                self.entries.insert(key.into(), value.into());
            }
        }
        Ok(())
    }

    /// Removes a key. False: it wasn't there.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        match self.entries.remove(key) {
            Some(value) => {
                self.used -= cost(key, &value);
                true
            }
            None => false,
        }
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.entries = HashMap::new();
        self.used = 0;
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes taken, overhead included.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes that may be taken.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// All entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entries.iter().map(|(key, value)| (&**key, &**value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_it_holds() {
        let mut store = Store::new(10_000);
        store.set(b"a", b"123").unwrap();
        store.set(b"a", b"12345").unwrap();
        store.set(b"b", b"").unwrap();
        assert_eq!(store.used(), 2 * ENTRY_OVERHEAD + 7);
        assert!(store.remove(b"a"));
        assert!(!store.remove(b"a"));
        assert_eq!(store.used(), ENTRY_OVERHEAD + 1);
        store.clear();
        assert_eq!((store.used(), store.len()), (0, 0));
    }

    #[test]
    fn a_full_store_refuses_growth_only() {
        let mut store = Store::new(ENTRY_OVERHEAD + 11);
        store.set(b"k", b"0123456789").unwrap();
        assert_eq!(store.set(b"k", b"0123456789x"), Err(Full));
        assert_eq!(store.set(b"l", b""), Err(Full));
        assert_eq!(store.get(b"k"), Some(&b"0123456789"[..]));
        store.set(b"k", b"9876543210").unwrap();
        store.set(b"k", b"").unwrap();
        assert_eq!(store.get(b"k"), Some(&b""[..]));
    }
}
