//! A map that can be asked and not walked.
//!
//! A hash map finds an open in one or two reads of memory where a tree of a million takes six. What makes it unfit for a
//! replicated state is its order, which differs from replica to replica. So this one has no order to offer: nothing here
//! iterates. The seed of its hashes is random for the same reason for which that does no harm; clients choose the
//! keys, and must not be able to choose them so that they collide.

#![expect(clippy::disallowed_types, reason = "wrapped, so that nobody can iterate")]

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// See the module's documentation. Two are equal if the same is found in both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lookup<K: Eq + Hash, V>(HashMap<K, V>);

impl<K: Eq + Hash, V> Default for Lookup<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V> Lookup<K, V> {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    pub(super) fn get_mut<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.0.get_mut(key)
    }

    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.0.insert(key, value)
    }

    pub(super) fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.0.remove(key)
    }
}
