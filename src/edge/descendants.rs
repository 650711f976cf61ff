//! What this process has started, and what that has started in turn.

use std::{collections::HashSet, fs};

use nix::unistd::{Pid, getpid, getsid};

use super::proc;

/// From now on whoever loses its parent below this process becomes a child of it, and stays a descendant. Nobody
/// buries those that end, so this is for a process that is about to end itself.
pub fn adopt_orphans() {
    // Cannot fail where the kernel knows it: Linux since 3.4.
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

/// All descendants of this process.
pub fn all() -> HashSet<Pid> {
    below(&processes(), getpid()).map(|stat| stat.pid).collect()
}

/// What stems from `leader`, a child of this process that may have ended, and runs: its process group, and those
/// descendants of this process that are no `bystanders`. Whoever began a session of its own is a daemon, which was meant
/// to outlive whoever started it.
pub fn running(leader: Pid, bystanders: &HashSet<Pid>) -> Vec<Pid> {
    let processes = processes();
    let family: HashSet<Pid> = below(&processes, getpid()).map(|stat| stat.pid).collect();
    let sessions = [getsid(None).unwrap_or(leader), leader];
    let counts = |stat: &&Stat| {
        let stems = family.contains(&stat.pid) && !bystanders.contains(&stat.pid);
        !stat.has_ended && sessions.contains(&stat.session) && (stems || stat.group == leader)
    };
    processes.iter().filter(counts).map(|stat| stat.pid).collect()
}

fn processes() -> Vec<Stat> {
    let pids = proc::pids().filter_map(|pid| i32::try_from(pid).ok());
    let stat = |pid: i32| Stat::parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
    pids.filter_map(stat).collect()
}

/// A process, by what `/proc/PID/stat` says.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    pid: Pid,
    parent: Pid,
    group: Pid,
    session: Pid,
    has_ended: bool,
}

impl Stat {
    /// The program's name stands in parentheses, and may itself have any in it.
    fn parse(pid: i32, text: &str) -> Option<Self> {
        let (_, after_name) = text.rsplit_once(") ")?;
        let mut words = after_name.split(' ');
        let has_ended = matches!(words.next()?, "Z" | "X");
        let mut next = || Some(Pid::from_raw(words.next()?.parse().ok()?));
        let (parent, group, session) = (next()?, next()?, next()?);
        Some(Self { pid: Pid::from_raw(pid), parent, group, session, has_ended })
    }
}

fn below(all: &[Stat], root: Pid) -> impl Iterator<Item = &Stat> {
    let mut family = HashSet::from([root]);
    loop {
        let before = family.len();
        let children = all.iter().filter(|stat| family.contains(&stat.parent)).map(|stat| stat.pid);
        let children: Vec<Pid> = children.collect();
        family.extend(children);
        if family.len() == before {
            return all.iter().filter(move |stat| stat.pid != root && family.contains(&stat.pid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_anything() {
        let text = "4711 (a) R 1 (b) S 812 4710 600 0 -1 4194304";
        let [pid, parent, group, session] = [4711, 812, 4710, 600].map(Pid::from_raw);
        let expected = Stat { pid, parent, group, session, has_ended: false };
        assert_eq!(Stat::parse(4711, text), Some(expected));
        assert!(Stat::parse(4711, "4711 (x) Z 1 4711 4711 0").is_some_and(|stat| stat.has_ended));
        assert_eq!(Stat::parse(4711, "4711 (x"), None);
    }

    #[test]
    fn children_of_children_are_descendants_in_whatever_order_they_are_listed() {
        let stat = |pid, parent| Stat {
            pid: Pid::from_raw(pid),
            parent: Pid::from_raw(parent),
            group: Pid::from_raw(1),
            session: Pid::from_raw(1),
            has_ended: false,
        };
        let all = [stat(30, 20), stat(10, 1), stat(20, 10), stat(40, 1), stat(50, 40)];
        let found: Vec<i32> =
            below(&all, Pid::from_raw(10)).map(|stat| stat.pid.as_raw()).collect();
        assert_eq!(found, [30, 20]);
    }
}
