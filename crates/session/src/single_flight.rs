use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{Mutex as Turnstile, OwnedMutexGuard};

/// Makes the same work, asked for twice at the same time, run once.
///
/// Whoever takes a turn first looks whether the work has been done meanwhile: the value of the work is in the
/// place it was done for (a store, an index), not here. Turns of one key are taken in the order of asking. When a
/// holder fails or is dropped, the next in line takes over.
pub struct SingleFlight<K: Eq + Hash + Clone>(Arc<Waiting<K>>);

type Waiting<K> = Mutex<HashMap<K, Weak<Turnstile<()>>>>;

impl<K: Eq + Hash + Clone> Default for SingleFlight<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash + Clone> Clone for SingleFlight<K> {
    /// Another handle to the same turns.
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The right to do the work of one key; dropping it lets the next one in.
pub struct Turn<K: Eq + Hash + Clone> {
    // Before `_place`: the turnstile opens before its entry in the map is looked at.
    _permit: OwnedMutexGuard<()>,
    _place: Place<K>,
}

/// A place in the line of a key, held while waiting and working.
struct Place<K: Eq + Hash + Clone> {
    waiting: Arc<Waiting<K>>,
    key: K,
    turnstile: Option<Arc<Turnstile<()>>>,
}

impl<K: Eq + Hash + Clone> SingleFlight<K> {
    /// Waits until no one else does the work of `key`. Dropping the future leaves the line.
    pub async fn turn(&self, key: K) -> Turn<K> {
        let (place, turnstile) = self.place(key);
        Turn { _permit: turnstile.lock_owned().await, _place: place }
    }

    fn place(&self, key: K) -> (Place<K>, Arc<Turnstile<()>>) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let turnstile = waiting.get(&key).and_then(Weak::upgrade).unwrap_or_default();
        waiting.insert(key.clone(), Arc::downgrade(&turnstile));
        (Place { waiting: self.0.clone(), key, turnstile: Some(turnstile.clone()) }, turnstile)
    }

    /// How many keys someone works on or waits for.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether no one works on anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Eq + Hash + Clone> Drop for Place<K> {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the map's lock, so that no one upgrades the entry between the two.
        drop(self.turnstile.take());
        if waiting.get(&self.key).is_some_and(|turnstile| turnstile.strong_count() == 0) {
            waiting.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn one_at_a_time_for_each_key_and_nothing_is_left() {
        let flights = SingleFlight::<u8>::default();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let (flights, running, most) = (flights.clone(), running.clone(), most.clone());
                tokio::spawn(async move {
                    let _turn = flights.turn(7).await;
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    tokio::task::yield_now().await;
                    running.fetch_sub(1, Ordering::SeqCst);
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(most.load(Ordering::SeqCst), 1);
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn other_keys_do_not_wait_and_leaving_the_line_cleans_up() {
        let flights = SingleFlight::<u8>::default();
        let first = flights.turn(1).await;
        let _other = flights.turn(2).await;
        let waiting = flights.turn(1);
        tokio::select! {
            biased;
            _ = waiting => panic!("two turns at once"),
            () = tokio::task::yield_now() => {}
        }
        drop(first);
        assert_eq!(flights.len(), 1);
    }
}
