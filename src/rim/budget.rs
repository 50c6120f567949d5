//! Memory that workers share: who needs much waits until others have given back.

use std::sync::{Condvar, Mutex, PoisonError};

/// So many bytes, lent in parts.
pub struct Budget {
    whole: u64,
    free: Mutex<u64>,
    changed: Condvar,
}

/// A part of a budget; given back when dropped.
pub struct Lent<'b> {
    budget: &'b Budget,
    bytes: u64,
}

impl Budget {
    /// A budget of this many bytes.
    pub fn new(bytes: u64) -> Self {
        Self { whole: bytes, free: Mutex::new(bytes), changed: Condvar::new() }
    }

    /// Waits for its turn. Whoever wants more than there is gets all of it.
    ///
    /// A thread may hold one part of a budget at a time: two threads that wait for a second one would wait forever.
    pub fn lend(&self, bytes: u64) -> Lent<'_> {
        let bytes = bytes.min(self.whole);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free < bytes {
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= bytes;
        Lent { budget: self, bytes }
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.budget.free.lock().unwrap_or_else(PoisonError::into_inner) += self.bytes;
        self.budget.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn never_more_than_there_is() {
        let budget = Budget::new(10);
        let (used, most) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for bytes in [3, 4, 5, 6, 30, 1, 2, 9] {
                let (budget, used, most) = (&budget, &used, &most);
                scope.spawn(move || {
                    for _ in 0..100 {
                        let lent = budget.lend(bytes);
                        most.fetch_max(
                            used.fetch_add(lent.bytes, Ordering::SeqCst) + lent.bytes,
                            Ordering::SeqCst,
                        );
                        used.fetch_sub(lent.bytes, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.into_inner() <= 10);
        assert_eq!(*budget.free.lock().unwrap(), 10);
    }
}
