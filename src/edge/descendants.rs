//! What this process has started, and what that has started in turn.

use std::{collections::HashSet, fs};

use nix::unistd::{Pid, getpid, getsid};

/// From now on whoever loses its parent below this process becomes a child of it, and stays a descendant.
pub fn adopt_orphans() {
    // Cannot fail where the kernel knows it: Linux since 3.4.
    let _ = nix::sys::prctl::set_child_subreaper(true);
}

/// All descendants of this process that run and belong to its session. One that began a session of its own is a
/// daemon, which was meant to outlive whoever started it.
pub fn running() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let stat = |pid: i32| Stat::parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
    let all: Vec<Stat> = pids.filter_map(stat).collect();
    let session = getsid(None).map_or(0, Pid::as_raw);
    below(&all, getpid().as_raw())
        .filter(|stat| stat.session == session && !stat.has_ended)
        .map(|stat| Pid::from_raw(stat.pid))
        .collect()
}

/// A process, by what `/proc/PID/stat` says.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    pid: i32,
    parent: i32,
    session: i32,
    has_ended: bool,
}

impl Stat {
    /// The program's name stands in parentheses, and may itself have any in it.
    fn parse(pid: i32, text: &str) -> Option<Self> {
        let (_, after_name) = text.rsplit_once(") ")?;
        let mut words = after_name.split(' ');
        let has_ended = matches!(words.next()?, "Z" | "X");
        let parent = words.next()?.parse().ok()?;
        let session = words.nth(1)?.parse().ok()?;
        Some(Self { pid, parent, session, has_ended })
    }
}

fn below(all: &[Stat], root: i32) -> impl Iterator<Item = &Stat> {
    let mut family = HashSet::from([root]);
    loop {
        let before = family.len();
        let children = all.iter().filter(|stat| family.contains(&stat.parent)).map(|stat| stat.pid);
        let children: Vec<i32> = children.collect();
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
        let text = "4711 (a) R 1 (b) S 812 4711 600 0 -1 4194304";
        let expected = Stat { pid: 4711, parent: 812, session: 600, has_ended: false };
        assert_eq!(Stat::parse(4711, text), Some(expected));
        assert!(Stat::parse(4711, "4711 (x) Z 1 4711 4711 0").is_some_and(|stat| stat.has_ended));
        assert_eq!(Stat::parse(4711, "4711 (x"), None);
    }

    #[test]
    fn children_of_children_are_descendants_in_whatever_order_they_are_listed() {
        let stat = |pid, parent| Stat { pid, parent, session: 1, has_ended: false };
        let all = [stat(30, 20), stat(10, 1), stat(20, 10), stat(40, 1), stat(50, 40)];
        let found: Vec<i32> = below(&all, 10).map(|stat| stat.pid).collect();
        assert_eq!(found, [30, 20]);
    }
}
