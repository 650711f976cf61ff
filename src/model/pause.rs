//! Who holds a pause, and until when. Time is passed in.

use std::time::{Duration, Instant};

/// On whose behalf a pause is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Name of the failover attempt.
    pub attempt: String,
    /// Fencing token: create revision of the lock.
    pub token: i64,
}

/// The pause belongs to another attempt that still counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("paused on behalf of attempt {attempt}")]
pub struct Taken {
    pub attempt: String,
}

/// Why a pause does not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotBegun {
    #[error(transparent)]
    Taken(#[from] Taken),
    /// Nobody would be left to ask for its end.
    #[error("attempt {attempt} has asked for its end already")]
    Ended { attempt: String },
}

/// Names one armed expiry. It fires only while its own pause is the current one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer(u64);

/// What a timer has to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Its pause was resumed, or belongs to somebody newer: end.
    Obsolete,
    /// Not yet; ask again after this long.
    Wait(Duration),
    /// Resume now.
    Now,
}

/// The book of the one pause that an agent can hold.
///
/// A pause is entered before PAUSE is sent and leaves the book only once traffic was proven to
/// flow, so that at every moment either the book is empty or a timer is on its way.
#[derive(Debug, Default)]
pub struct PauseBook {
    armed: u64,
    hold: Option<Hold>,
    /// On whose behalf a resume was asked for last. Its pause may still be on the way.
    ended: Option<Claim>,
}

#[derive(Debug)]
struct Hold {
    /// None: a pause without an owner, found at start or left by a failure.
    claim: Option<Claim>,
    deadline: Instant,
    timer: Timer,
    /// Found at start, when another agent may have asked PgBouncer for it and have ended it since: the newest failover
    /// that its expiry was put off for, at first its own.
    adopted: Option<i64>,
}

impl PauseBook {
    /// Enters a pause for `claim` that expires `expiry` from `now`.
    ///
    /// A repeated request of the same attempt never moves its deadline further away. A newer
    /// lock holder takes over from an older one.
    ///
    /// # Errors
    /// [`NotBegun::Ended`] when a resume of `claim` came first, and what [`Self::check`] refuses.
    pub fn begin(
        &mut self,
        claim: &Claim,
        now: Instant,
        expiry: Duration,
    ) -> Result<Timer, NotBegun> {
        if self.ended.as_ref() == Some(claim) {
            return Err(NotBegun::Ended { attempt: claim.attempt.clone() });
        }
        self.check(claim, now)?;
        let asked = now + expiry;
        let deadline = match &self.hold {
            Some(hold) if hold.claim.as_ref() == Some(claim) => hold.deadline.min(asked),
            _ => asked,
        };
        Ok(self.enter(Some(claim.clone()), deadline, None))
    }

    /// Enters a pause found at start, or one whose resume failed: due at `deadline`.
    pub fn adopt(&mut self, claim: Option<Claim>, deadline: Instant) -> Timer {
        let own = claim.as_ref().map(|claim| claim.token);
        self.enter(claim, deadline, own)
    }

    /// Whether `claim` may pause or resume now.
    ///
    /// # Errors
    /// [`Taken`] when another attempt with the same or a higher token holds the pause and its
    /// deadline lies ahead.
    pub fn check(&self, claim: &Claim, now: Instant) -> Result<(), Taken> {
        let held = self.hold.as_ref().filter(|hold| now < hold.deadline);
        match held.and_then(|hold| hold.claim.as_ref()) {
            Some(owner) if owner.attempt != claim.attempt && owner.token >= claim.token => {
                Err(Taken { attempt: owner.attempt.clone() })
            }
            _ => Ok(()),
        }
    }

    /// A resume was asked for on behalf of `claim`: from now on no pause of it begins.
    pub fn end(&mut self, claim: &Claim) {
        self.ended = Some(claim.clone());
    }

    /// Traffic was proven to flow: ends the pause, whoever held it, and makes its timer obsolete.
    pub fn release(&mut self) {
        self.hold = None;
    }

    /// What the holder of `timer` must do at `now`.
    pub fn due(&self, timer: Timer, now: Instant) -> Due {
        match &self.hold {
            Some(hold) if hold.timer == timer => {
                let left = hold.deadline.saturating_duration_since(now);
                if left.is_zero() { Due::Now } else { Due::Wait(left) }
            }
            _ => Due::Obsolete,
        }
    }

    /// Puts off the expiry of a pause that was found at start when a failover has begun since, whose token is
    /// `newest`; returns the timer that is due at `deadline`.
    ///
    /// That failover may have asked another agent of this machine for its own pause, whose expiry is armed there: ours
    /// would let clients go in the middle of the move. By `deadline` its pause must have expired.
    pub fn defer(&mut self, newest: i64, deadline: Instant) -> Option<Timer> {
        let hold = self.hold.as_ref().filter(|hold| hold.adopted.is_some_and(|of| of < newest))?;
        let claim = hold.claim.clone();
        Some(self.enter(claim, deadline, Some(newest)))
    }

    /// Whether a pause is in the book.
    pub fn is_held(&self) -> bool {
        self.hold.is_some()
    }

    /// Attempt that the pause in the book belongs to.
    pub fn owner(&self) -> Option<&str> {
        Some(self.hold.as_ref()?.claim.as_ref()?.attempt.as_str())
    }

    fn enter(&mut self, claim: Option<Claim>, deadline: Instant, adopted: Option<i64>) -> Timer {
        self.armed += 1;
        let timer = Timer(self.armed);
        self.hold = Some(Hold { claim, deadline, timer, adopted });
        timer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn claim(attempt: &str, token: i64) -> Claim {
        Claim { attempt: attempt.into(), token }
    }

    #[test]
    fn an_expiry_fires_at_its_deadline() {
        let (mut book, now) = (PauseBook::default(), Instant::now());
        let timer = book.begin(&claim("a", 1), now, 10 * SECOND).expect("free");
        assert_eq!(book.due(timer, now + 4 * SECOND), Due::Wait(6 * SECOND));
        assert_eq!(book.due(timer, now + 10 * SECOND), Due::Now);
        assert_eq!(book.due(timer, now + 60 * SECOND), Due::Now);
    }

    #[test]
    fn a_resume_cancels_the_expiry() {
        let (mut book, now) = (PauseBook::default(), Instant::now());
        let timer = book.begin(&claim("a", 1), now, SECOND).expect("free");
        book.release();
        assert_eq!(book.due(timer, now + 2 * SECOND), Due::Obsolete);
        assert!(!book.is_held());
    }

    #[test]
    fn an_adopted_pause_is_put_off_once_for_each_newer_failover() {
        let (mut book, now) = (PauseBook::default(), Instant::now());
        let old = book.adopt(Some(claim("a", 5)), now);
        assert_eq!(book.defer(5, now + SECOND), None);
        let timer = book.defer(6, now + SECOND).expect("a newer one may need it");
        assert_eq!(book.due(old, now), Due::Obsolete);
        assert_eq!(book.due(timer, now), Due::Wait(SECOND));
        // It is still the older one's, and so the newer one's to take over.
        assert_eq!(book.check(&claim("b", 6), now), Ok(()));
        // Nothing newer: now it ends.
        assert_eq!(book.defer(6, now + 9 * SECOND), None);
        assert_eq!(book.due(timer, now + SECOND), Due::Now);
        // Without an owner, nobody says whose it is: it is resumed.
        book.adopt(None, now);
        assert_eq!(book.defer(7, now + SECOND), None);
        // What this agent itself has paused stays its own to end.
        book.begin(&claim("b", 6), now, SECOND).expect("newer");
        assert_eq!(book.defer(7, now + SECOND), None);
    }

    #[test]
    fn an_old_timer_never_resumes_the_next_attempt() {
        let (mut book, now) = (PauseBook::default(), Instant::now());
        let old = book.begin(&claim("a", 1), now, SECOND).expect("free");
        book.release();
        let new = book.begin(&claim("b", 2), now, 10 * SECOND).expect("free");
        assert_eq!(book.due(old, now + 5 * SECOND), Due::Obsolete);
        assert_eq!(book.due(new, now + 5 * SECOND), Due::Wait(5 * SECOND));
    }

    #[test]
    fn a_pause_of_another_live_attempt_is_taken() {
        let (mut book, now) = (PauseBook::default(), Instant::now());
        book.begin(&claim("a", 3), now, 10 * SECOND).expect("free");
        let taken = Taken { attempt: "a".into() };
        assert_eq!(book.begin(&claim("b", 3), now, SECOND), Err(NotBegun::Taken(taken.clone())));
        assert_eq!(book.check(&claim("b", 3), now), Err(taken));
        assert_eq!(book.owner(), Some("a"));
    }

    #[test]
    fn an_expired_or_fenced_attempt_gives_way() {
        let (mut book, now) = (PauseBook::default(), Instant::now());
        let old = book.begin(&claim("a", 3), now, SECOND).expect("free");
        book.begin(&claim("b", 4), now, SECOND).expect("a newer lock holder takes over");
        assert_eq!(book.due(old, now + 2 * SECOND), Due::Obsolete);
        book.begin(&claim("c", 4), now + SECOND, SECOND).expect("the deadline has passed");
    }

    #[test]
    fn repeating_a_request_never_lengthens_the_pause() {
        let (mut book, now) = (PauseBook::default(), Instant::now());
        book.begin(&claim("a", 1), now, 10 * SECOND).expect("free");
        let again = book.begin(&claim("a", 1), now + 5 * SECOND, 10 * SECOND).expect("own");
        assert_eq!(book.due(again, now + 5 * SECOND), Due::Wait(5 * SECOND));
    }

    #[test]
    fn a_pause_that_arrives_after_its_own_resume_is_refused() {
        // Who asked for a resume, in this order; who asks to pause then; whether it may.
        let cases = [
            (vec![("a", 1)], ("a", 1), false),
            (vec![("a", 1)], ("b", 2), true),
            (vec![("a", 1)], ("a", 2), true),
            (vec![("a", 1), ("b", 2)], ("b", 2), false),
            (vec![("a", 1), ("a", 1)], ("a", 1), false),
            (vec![], ("a", 1), true),
        ];
        for (resumes, (attempt, token), begins) in cases {
            let (mut book, now) = (PauseBook::default(), Instant::now());
            for (attempt, token) in &resumes {
                book.end(&claim(attempt, *token));
                book.release();
            }
            let begun = book.begin(&claim(attempt, token), now, SECOND);
            assert_eq!(begun.is_ok(), begins, "{resumes:?}, then {attempt} {token}");
            let ended = matches!(begun, Err(NotBegun::Ended { .. }));
            assert_eq!((ended, book.is_held()), (!begins, begins));
        }
    }

    #[test]
    fn an_expiry_or_a_failed_pause_does_not_end_its_attempt() {
        let (mut book, now) = (PauseBook::default(), Instant::now());
        book.begin(&claim("a", 1), now, SECOND).expect("free");
        book.release();
        book.begin(&claim("a", 1), now, SECOND).expect("it may try again");
    }

    #[test]
    fn a_pause_without_an_owner_is_open_to_everybody() {
        let (mut book, now) = (PauseBook::default(), Instant::now());
        let timer = book.adopt(None, now);
        assert_eq!(book.due(timer, now), Due::Now);
        book.begin(&claim("a", 1), now, SECOND).expect("nobody's");
        assert_eq!(book.due(timer, now), Due::Obsolete);
    }
}
