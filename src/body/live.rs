//! The bodies that are being read. When there are too many, the slowest one ends.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    error::{Error, Reason},
    limits::{BodyBounds, KEEP_GRACE, KEEP_RATE},
    lock::lock,
    model::upload::Scope,
};

/// Counts the bodies that are being read.
///
/// If there are as many as allowed, a new one takes the place of the body that owes the most: see
/// [`Meter`].
#[derive(Default)]
pub(crate) struct Bodies {
    live: Mutex<Live>,
}

#[derive(Default)]
struct Live {
    meters: HashMap<u64, Arc<Meter>>,
    of_scope: HashMap<Scope, u64>,
    of_peer: HashMap<IpAddr, u64>,
    next_number: u64,
    /// No body owes enough to end before this time. Refused requests must not keep the server busy.
    none_before: Option<Instant>,
}

impl Bodies {
    /// Counts a body until the guard is dropped. Ends another one if there is no place for it.
    ///
    /// # Errors
    ///
    /// [`Busy`](Reason::Busy) if there is no place and no body is slow.
    pub(crate) fn enter(
        self: &Arc<Self>,
        bounds: &BodyBounds,
        scope: Option<&Scope>,
        peer: Option<IpAddr>,
    ) -> Result<BodyGuard, Error> {
        let peer = peer.map(network);
        // Woken without the lock: a waker can run any code.
        let mut ended = Vec::new();
        let entered = lock(&self.live).enter(bounds, scope, peer, &mut ended);
        ended.iter().for_each(Meter::wake);
        let meter = entered.ok_or(Reason::Busy)?;
        Ok(BodyGuard {
            bodies: Arc::clone(self),
            meter,
        })
    }

    /// How many bodies are being read.
    pub(crate) fn count(&self) -> u64 {
        lock(&self.live).meters.len() as u64
    }
}

impl Live {
    fn enter(
        &mut self,
        bounds: &BodyBounds,
        scope: Option<&Scope>,
        peer: Option<IpAddr>,
        ended: &mut Vec<Arc<Meter>>,
    ) -> Option<Arc<Meter>> {
        let is_full = |count: Option<&u64>, bound| count.copied().unwrap_or_default() >= bound;
        if scope.is_some_and(|scope| is_full(self.of_scope.get(scope), bounds.per_scope)) {
            ended.push(self.end_slowest(|meter| meter.scope.as_ref() == scope)?);
        }
        if peer.is_some_and(|peer| is_full(self.of_peer.get(&peer), bounds.per_peer)) {
            ended.push(self.end_slowest(|meter| meter.peer == peer)?);
        }
        if is_full(Some(&(self.meters.len() as u64)), bounds.in_all) {
            let now = Instant::now();
            if self.none_before.is_some_and(|time| now < time) {
                return None;
            }
            let slowest = self.end_slowest(|_| true);
            if slowest.is_none() {
                let most = self.meters.values().map(|meter| meter.owes()).max();
                self.none_before = Some(now + KEEP_GRACE.saturating_sub(most.unwrap_or_default()));
            }
            ended.push(slowest?);
        }
        let meter = Arc::new(Meter::new(self.next_number, scope.cloned(), peer));
        self.next_number += 1;
        self.meters.insert(meter.number, Arc::clone(&meter));
        meter.scope.iter().for_each(|scope| {
            *self.of_scope.entry(scope.clone()).or_default() += 1;
        });
        meter.peer.iter().for_each(|peer| {
            *self.of_peer.entry(*peer).or_default() += 1;
        });
        Some(meter)
    }

    /// Ends the body that owes the most of those that `is_one` accepts, if it owes enough.
    fn end_slowest(&mut self, is_one: impl Fn(&Meter) -> bool) -> Option<Arc<Meter>> {
        let candidates = self.meters.values().filter(|meter| is_one(meter));
        let owing = candidates.map(|meter| (meter.owes(), meter));
        let owing = owing.filter(|(owes, _)| *owes >= KEEP_GRACE);
        let (_, slowest) = owing.max_by_key(|(owes, _)| *owes)?;
        let slowest = Arc::clone(slowest);
        slowest.ended.store(true, Relaxed);
        self.leave(&slowest);
        Some(slowest)
    }

    fn leave(&mut self, meter: &Meter) {
        // It is not there any more if it had to end.
        if self.meters.remove(&meter.number).is_some() {
            meter
                .scope
                .iter()
                .for_each(|s| decrement(&mut self.of_scope, s));
            meter
                .peer
                .iter()
                .for_each(|p| decrement(&mut self.of_peer, p));
        }
    }
}

fn decrement<K: Eq + Hash>(counts: &mut HashMap<K, u64>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// The network that a peer can take all addresses of.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let subnet = u128::from(address) & !u128::from(u64::MAX);
            Ipv6Addr::from(subnet).into()
        }
        address => address,
    }
}

/// A body that is being read.
pub(crate) struct BodyGuard {
    bodies: Arc<Bodies>,
    meter: Arc<Meter>,
}

impl BodyGuard {
    pub(crate) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// Ends the body that owes the most, if one owes enough, because this one needs what it holds.
    /// `in_scope`: only one of the same scope.
    pub(crate) fn end_slowest(&self, in_scope: bool) {
        let is_other = |other: &Meter| other.number != self.meter.number;
        let is_one = |other: &Meter| !in_scope || other.scope == self.meter.scope;
        let ended = lock(&self.bodies.live).end_slowest(|it| is_other(it) && is_one(it));
        ended.iter().for_each(Meter::wake);
    }
}

impl Drop for BodyGuard {
    fn drop(&mut self) {
        lock(&self.bodies.live).leave(&self.meter);
    }
}

/// How slow one body is.
///
/// A body *owes* the time that it makes the server wait, less the time that its bytes would take at
/// [`KEEP_RATE`]. It never owes less than nothing: bytes buy no patience for later.
///
/// The body writes the numbers without a lock, and other requests read them. So they may be older
/// than what the body does now.
pub(crate) struct Meter {
    number: u64,
    scope: Option<Scope>,
    peer: Option<IpAddr>,
    begun: Instant,
    /// Nanoseconds that the body owes, without those since `waiting`.
    owes: AtomicU64,
    /// When the body began to wait for its client, in nanoseconds since `begun`. [`u64::MAX`] if it
    /// does not wait.
    waiting: AtomicU64,
    /// Whether the body has to end.
    ended: AtomicBool,
    /// Set when it has to end while it waits.
    waker: Mutex<Option<Waker>>,
}

impl Meter {
    fn new(number: u64, scope: Option<Scope>, peer: Option<IpAddr>) -> Self {
        Self {
            number,
            scope,
            peer,
            begun: Instant::now(),
            owes: AtomicU64::new(0),
            waiting: AtomicU64::new(u64::MAX),
            ended: AtomicBool::new(false),
            waker: Mutex::default(),
        }
    }

    /// Notes that the body has waited for some time and has got some bytes.
    pub(crate) fn note(&self, waited: Duration, bytes: u64) {
        let owes = Duration::from_nanos(self.owes.load(Relaxed)).saturating_add(waited);
        let owes = owes.saturating_sub(time_of(bytes, KEEP_RATE));
        self.owes.store(nanos(owes), Relaxed);
    }

    /// Notes since when the body waits for its client. `None` if it does not wait.
    pub(crate) fn wait_since(&self, since: Option<Instant>) {
        let since = since.map_or(u64::MAX, |since| nanos(since.duration_since(self.begun)));
        self.waiting.store(since, Relaxed);
    }

    /// Notes that nothing more is read of the body. It will not have to end.
    pub(crate) fn settle(&self) {
        self.owes.store(0, Relaxed);
        self.wait_since(None);
    }

    /// Whether the body has to end.
    pub(crate) fn has_to_end(&self) -> bool {
        self.ended.load(Relaxed)
    }

    /// Sets what to wake if the body has to end. After this, ask [`has_to_end`](Self::has_to_end).
    pub(crate) fn register(&self, waker: &Waker) {
        *lock(&self.waker) = Some(waker.clone());
    }

    fn wake(self: &Arc<Self>) {
        // The lock makes `ended` visible to a body that registers later.
        let waker = lock(&self.waker).take();
        waker.into_iter().for_each(Waker::wake);
    }

    fn owes(&self) -> Duration {
        let since = Duration::from_nanos(self.waiting.load(Relaxed));
        let waiting = self.begun.elapsed().saturating_sub(since);
        Duration::from_nanos(self.owes.load(Relaxed)).saturating_add(waiting)
    }
}

/// How long this many bytes take at this rate, in bytes per second.
pub(crate) fn time_of(bytes: u64, rate: u64) -> Duration {
    Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: BodyBounds = BodyBounds {
        per_scope: 2,
        per_peer: 3,
        in_all: 4,
    };

    fn second(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn waiting(guard: &BodyGuard) {
        guard.meter.wait_since(Some(Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn the_body_that_owes_the_most_ends() {
        let bodies = Arc::new(Bodies::default());
        let enter = || bodies.enter(&BOUNDS, None, None);
        let guards: Vec<_> = (0..4).map(|_| enter().unwrap()).collect();
        let ended = || -> Vec<_> {
            let ended = guards.iter().map(|guard| guard.meter.has_to_end());
            ended.collect()
        };
        // The first one waits for the store, the second one has brought enough for its time.
        for guard in &guards[1..] {
            waiting(guard);
        }
        assert!(enter().is_err());
        tokio::time::advance(second(8)).await;
        for (guard, bytes) in guards[1..].iter().zip([8 * KEEP_RATE, 8 << 10, 0]) {
            guard.meter.note(second(8), bytes);
            waiting(guard);
        }
        let new = enter().unwrap();
        assert_eq!(ended(), [false, false, false, true]);
        let newer = enter().unwrap();
        assert_eq!(ended(), [false, false, true, true]);
        assert_eq!(enter().err(), Some(Reason::Busy.into()));
        // Bytes that came earlier are no merit.
        tokio::time::advance(second(1)).await;
        let _newest = enter().unwrap();
        assert_eq!(ended(), [false, true, true, true]);
        // A body that had to end is not counted when it ends, the others are.
        drop(guards);
        let counts = |bodies: &Bodies| lock(&bodies.live).meters.len();
        assert_eq!(counts(&bodies), 3);
        drop((new, newer));
        assert_eq!(counts(&bodies), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_is_full_gives_way_itself() {
        let bodies = Arc::new(Bodies::default());
        let (alice, bob) = (Scope::new("alice"), Scope::new("bob"));
        let peer = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let enter = |scope, peer| {
            let guard = bodies.enter(&BOUNDS, Some(scope), peer);
            guard.inspect(waiting)
        };
        let first = enter(&bob, peer("2001:db8::1")).unwrap();
        tokio::time::advance(second(1)).await;
        let second_one = enter(&alice, peer("2001:db8::2")).unwrap();
        let third = enter(&alice, peer("::ffff:192.0.2.1")).unwrap();
        // Too new to end.
        assert!(enter(&alice, None).is_err());
        tokio::time::advance(second(1)).await;
        let fourth = enter(&alice, peer("192.0.2.1")).unwrap();
        assert!(!first.meter.has_to_end());
        assert_ne!(second_one.meter.has_to_end(), third.meter.has_to_end());
        let live = lock(&bodies.live);
        assert_eq!(live.of_scope[&alice], 2);
        let all: u64 = live.of_peer.values().sum();
        assert_eq!((all, live.meters.len()), (3, 3));
        drop(live);
        drop((first, second_one, third, fourth));
        let live = lock(&bodies.live);
        assert!(live.of_scope.is_empty() && live.of_peer.is_empty() && live.meters.is_empty());
    }

    #[test]
    fn peers_are_networks() {
        for (address, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            let network = network(address.parse().unwrap());
            assert_eq!(network.to_string(), expected);
        }
    }
}
