//! Which image is loaded next, while others are being loaded.
//!
//! 1. An image is taken when none of the layers that it misses is on its way already: Docker would unpack it twice;
//! 2. of those the smallest that brings a layer for others, who cannot begin before; else the largest, so that no core
//!    is idle beside a long last load;
//! 3. it waits for others to end when the disk has no room for all of them at once;
//! 4. the first failure ends everything: what is loaded stays, nothing new begins.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::DockerError;
use super::import::{bytes_to_send, room_for};
use crate::model::{Digest, PinnedImage};

/// Images that are to be loaded, and what is known of those that are.
pub(super) struct Queue<'i> {
    state: Mutex<State<'i>>,
    changed: Condvar,
}

struct State<'i> {
    /// As they were asked for.
    images: Vec<&'i PinnedImage>,
    waiting: Vec<&'i PinnedImage>,
    /// Chains that are there.
    present: BTreeSet<Digest>,
    /// Images that are being loaded, with the chains that they bring and the room that they take.
    running: Vec<(Digest, BTreeSet<Digest>, u64)>,
    loaded: Vec<(Digest, u64)>,
    failed: Option<DockerError>,
}

impl<'i> Queue<'i> {
    /// A queue of images for a Docker that has the chains `present`.
    pub(super) fn new(images: Vec<&'i PinnedImage>, present: BTreeSet<Digest>) -> Self {
        let waiting = images.clone();
        let (running, loaded) = (Vec::new(), Vec::new());
        let state = State { images, waiting, present, running, loaded, failed: None };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The next image with the chains that it need not bring; waits while none may begin. Nothing: there is no more to do.
    pub(super) fn next(&self, data_root: &Path) -> Option<(&'i PinnedImage, BTreeSet<Digest>)> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() || state.waiting.is_empty() {
                return None;
            }
            // Each time anew: a daemon that finds its disk full in the middle may leave half a layer behind.
            match state.take(free_bytes(data_root), data_root) {
                Ok(Some(next)) => return Some(next),
                Ok(None) => {}
                Err(error) => {
                    state.failed = Some(error);
                    self.changed.notify_all();
                    return None;
                }
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Notes how a load ended; `bytes` were sent.
    pub(super) fn done(&self, image: &PinnedImage, bytes: Result<u64, DockerError>) {
        let mut state = self.lock();
        state.running.retain(|(running, ..)| *running != image.config);
        match bytes {
            Ok(bytes) => {
                state.present.extend(image.chains());
                state.loaded.push((image.config, bytes));
            }
            // The first reason is the one to tell.
            Err(error) => {
                state.failed.get_or_insert(error);
            }
        }
        self.changed.notify_all();
    }

    /// Config digests and bytes sent of all images, in the order in which they were asked for.
    pub(super) fn finish(self) -> Result<Vec<(Digest, u64)>, DockerError> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = state.failed {
            return Err(error);
        }
        let mut loaded = state.loaded;
        loaded.sort_by_key(|(config, _)| state.images.iter().position(|image| image.config == *config));
        Ok(loaded)
    }

    fn lock(&self) -> MutexGuard<'_, State<'i>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'i> State<'i> {
    /// Takes the best image of those that may begin. Fails when it has no room although nothing else runs.
    fn take(
        &mut self,
        free: Option<u64>,
        data_root: &Path,
    ) -> Result<Option<(&'i PinnedImage, BTreeSet<Digest>)>, DockerError> {
        let Some(index) = self.best() else { return Ok(None) };
        let image = self.waiting[index];
        let needed = room_for(image, &self.present);
        let held: u64 = self.running.iter().map(|(.., room)| room).sum();
        // A data root that cannot be looked at is the load's own problem.
        if let Some(free) = free.filter(|free| needed + held > *free) {
            if !self.running.is_empty() {
                return Ok(None);
            }
            let reference = image.reference.clone();
            return Err(DockerError::NoRoom { reference, path: data_root.to_owned(), needed, free });
        }
        self.waiting.remove(index);
        let brings = image.chains().into_iter().filter(|chain| !self.present.contains(chain)).collect();
        self.running.push((image.config, brings, needed));
        Ok(Some((image, self.present.clone())))
    }

    /// Where the image waits that should begin next.
    fn best(&self) -> Option<usize> {
        let on_the_way: BTreeSet<Digest> =
            self.running.iter().flat_map(|(_, chains, _)| chains).copied().collect();
        let chains: Vec<Vec<Digest>> = self.waiting.iter().map(|image| image.chains()).collect();
        let mut wanted: BTreeMap<Digest, usize> = BTreeMap::new();
        for chain in chains.iter().flatten().filter(|chain| !self.present.contains(chain)) {
            *wanted.entry(*chain).or_default() += 1;
        }
        let candidates = chains
            .iter()
            .enumerate()
            .filter(|(_, chains)| !chains.iter().any(|chain| on_the_way.contains(chain)));
        let keyed = candidates.map(|(index, chains)| {
            let bytes = bytes_to_send(&[self.waiting[index]], &self.present);
            let others_wait = chains.iter().any(|chain| wanted.get(chain).is_some_and(|count| *count > 1));
            (if others_wait { Ok(bytes) } else { Err(Reverse(bytes)) }, index)
        });
        // `Ok` is less than `Err`, and the index keeps the given order among equals.
        keyed.min().map(|(_, index)| index)
    }
}

fn free_bytes(data_root: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(data_root).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PinnedLayer;

    fn image(layers: &[&str]) -> PinnedImage {
        sized(&layers.iter().map(|name| (*name, 1000)).collect::<Vec<_>>())
    }

    fn sized(layers: &[(&str, u64)]) -> PinnedImage {
        let names: Vec<&str> = layers.iter().map(|(name, _)| *name).collect();
        let layer =
            |(name, size): &(&str, u64)| PinnedLayer { diff_id: Digest::of(name.as_bytes()), size: *size };
        PinnedImage {
            reference: names.join("/"),
            manifest: Digest::of(b"m"),
            config: Digest::of(names.join("/").as_bytes()),
            layers: layers.iter().map(layer).collect(),
        }
    }

    fn names(taken: &[Option<&PinnedImage>]) -> Vec<String> {
        taken.iter().map(|image| image.map_or("-".to_owned(), |image| image.reference.clone())).collect()
    }

    fn take<'i>(queue: &Queue<'i>, free: u64) -> Option<&'i PinnedImage> {
        let taken = queue.lock().take(Some(free), Path::new("/data"));
        taken.ok().flatten().map(|(image, _)| image)
    }

    #[test]
    fn a_layer_is_never_on_its_way_twice() {
        let images = [image(&["base", "a"]), image(&["base", "b"]), image(&["other"]), image(&["base", "c"])];
        let queue = Queue::new(images.iter().collect(), BTreeSet::new());
        let first = [take(&queue, u64::MAX), take(&queue, u64::MAX), take(&queue, u64::MAX)];
        assert_eq!(names(&first), ["base/a", "other", "-"]);
        queue.done(&images[0], Ok(2000));
        // The base is there now: both may run.
        let then = [take(&queue, u64::MAX), take(&queue, u64::MAX)];
        assert_eq!(names(&then), ["base/b", "base/c"]);
        for (image, bytes) in [(&images[3], 1), (&images[2], 2), (&images[1], 3)] {
            queue.done(image, Ok(bytes));
        }
        let order: Vec<u64> = queue.finish().unwrap().into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(order, [2000, 3, 2, 1]);
    }

    #[test]
    fn shared_layers_come_first_and_cheaply_then_the_largest() {
        let (base, openstack) = (("base", 50), ("openstack", 170));
        let images = [
            sized(&[base, openstack, ("glance", 390)]),
            sized(&[base, openstack, ("nova", 700)]),
            sized(&[base, openstack, ("placement", 50)]),
            sized(&[base, ("mariadb", 200)]),
            sized(&[base, ("memcached", 60)]),
            sized(&[base, ("rabbitmq", 100)]),
        ];
        let queue = Queue::new(images.iter().collect(), BTreeSet::new());
        assert_eq!(names(&[take(&queue, u64::MAX), take(&queue, u64::MAX)]), ["base/memcached", "-"]);
        queue.done(&images[4], Ok(0));
        let then = [take(&queue, u64::MAX), take(&queue, u64::MAX)];
        assert_eq!(names(&then), ["base/openstack/placement", "base/mariadb"]);
        queue.done(&images[2], Ok(0));
        let rest = [take(&queue, u64::MAX), take(&queue, u64::MAX), take(&queue, u64::MAX)];
        assert_eq!(names(&rest), ["base/openstack/nova", "base/openstack/glance", "base/rabbitmq"]);
    }

    #[test]
    fn loads_share_the_room_or_wait_for_each_other() {
        let images = [image(&["a"]), image(&["b"])];
        let queue = Queue::new(images.iter().collect(), BTreeSet::new());
        let each = room_for(&images[0], &BTreeSet::new());
        assert_eq!(names(&[take(&queue, 2 * each - 1), take(&queue, 2 * each - 1)]), ["a", "-"]);
        queue.done(&images[0], Ok(0));
        let refused = queue.lock().take(Some(each - 1), Path::new("/data"));
        assert!(matches!(refused, Err(DockerError::NoRoom { needed, .. }) if needed == each));
    }

    #[test]
    fn nothing_begins_after_a_failure() {
        let images = [image(&["a"]), image(&["b"])];
        let queue = Queue::new(images.iter().collect(), BTreeSet::new());
        assert!(take(&queue, u64::MAX).is_some());
        let problem = "none".to_owned();
        let failed = DockerError::NotLoaded { image: images[0].config, reference: "a".to_owned(), problem };
        queue.done(&images[0], Err(failed));
        assert!(queue.next(Path::new("/")).is_none());
        assert!(matches!(queue.finish(), Err(DockerError::NotLoaded { .. })));
    }
}
