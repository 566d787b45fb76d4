use super::*;
use std::os::unix::fs::PermissionsExt as _;

fn begun() -> Begun {
    Begun {
        container: ContainerId::new("a".repeat(64)).unwrap(),
        started_at: "2026-01-01T00:00:00Z".into(),
        restart_policy: RestartPolicy::never(),
        leave_running: false,
        memory_bytes: 7,
    }
}

/// A checkpoint of a container that was ended.
pub(in crate::checkpoints) fn about(name: &str) -> About {
    About {
        version: VERSION,
        name: CheckpointName::new(name).unwrap(),
        container_name: "web".into(),
        begun: begun(),
        created_at_ms: 1,
        image_bytes: 2,
        files: Vec::new(),
    }
}

fn made(store: &Store, name: &str) -> Kept {
    let new = store
        .begin(&CheckpointName::new(name).unwrap(), &begun())
        .unwrap();
    new.describe(&about(name)).unwrap();
    fs::write(new.memory(), [7; 100]).unwrap();
    new.keep().unwrap()
}

#[test]
fn one_that_is_being_made_is_not_among_the_others() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::beside(root.path());
    assert!(store.all().unwrap().is_empty());
    let name = CheckpointName::new("one").unwrap();
    let new = store.begin(&name, &begun()).unwrap();
    assert!(store.all().unwrap().is_empty());
    assert!(!store.holds(&begun().container, &name));
    assert!(store.begin(&name, &begun()).is_err(), "made twice at once");
    let left = store.unfinished().unwrap();
    assert_eq!(left[0].begun().unwrap(), Some(begun()));
    new.describe(&about("one")).unwrap();
    let kept = new.keep().unwrap();
    assert!(kept.is_unfinished() && !kept.is_used());
    kept.finished().unwrap();
    assert!(!kept.is_unfinished() && store.unfinished().unwrap().is_empty());
    assert_eq!(store.all().unwrap()[0].about, about("one"));
    kept.remove().unwrap();
    assert!(store.all().unwrap().is_empty());
    assert_eq!(fs::read_dir(store.root()).unwrap().count(), 0);
}

#[test]
fn directories_are_closed_to_others() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::beside(root.path());
    made(&store, "one");
    let container = store.root().join(begun().container.as_str());
    for path in [store.root(), &container, &container.join("one")] {
        assert_eq!(
            fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o700,
            "{path:?}"
        );
    }
    fs::set_permissions(store.root(), fs::Permissions::from_mode(0o755)).unwrap();
    let name = CheckpointName::new("two").unwrap();
    assert!(store.begin(&name, &begun()).is_err());
}

#[test]
fn descriptions_that_do_not_fit_are_left_out() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::beside(root.path());
    let path = |name: &str| {
        store
            .root()
            .join(begun().container.as_str())
            .join(name)
            .join(ABOUT)
    };
    let good = serde_json::to_string(&about("one")).unwrap();
    let bad = [
        String::new(),
        "{}".into(),
        good.replace("\"version\":1", "\"version\":2"),
        good.replace("\"one\"", "\"two\""),
        good.replace("\"one\"", "\"../x\""),
        good.replace("aaaa", "bbbb"),
        good.replacen('{', "{\"more\":1,", 1),
    ];
    for text in bad {
        made(&store, "one");
        assert_ne!(text, good);
        fs::write(path("one"), &text).unwrap();
        assert!(store.all().unwrap().is_empty(), "{text}");
        fs::remove_dir_all(store.root()).unwrap();
    }
}

#[test]
fn notes_come_and_go() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::beside(root.path());
    let kept = made(&store, "one");
    kept.restoring(true).unwrap();
    kept.used(true).unwrap();
    assert!(kept.is_restoring() && kept.is_used());
    kept.restoring(false).unwrap();
    kept.used(false).unwrap();
    kept.used(false).unwrap();
    assert!(!kept.is_restoring() && !kept.is_used());
}

#[test]
fn what_opens_the_content_goes_first() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::beside(root.path());
    let kept = made(&store, "one");
    // As whoever holds the file open, or reads the disk.
    let seen = root.path().join("seen");
    fs::hard_link(kept.memory(), &seen).unwrap();
    kept.remove().unwrap();
    let left = fs::read(seen).unwrap();
    assert_eq!(left.len(), 100);
    assert!(left[..HEADER].iter().all(|byte| *byte == 0));
}

#[test]
fn a_checkpoint_is_known_again_whatever_it_is_called() {
    let one = about("one").identity().unwrap();
    let mut other = about("two");
    other.container_name = "other".into();
    other.begun.restart_policy.name = "always".into();
    assert_eq!(other.identity().unwrap(), one);
    let changes: [fn(&mut About); 5] = [
        |about| about.begun.started_at = "2026-01-02T00:00:00Z".into(),
        |about| about.begun.container = ContainerId::new("b".repeat(64)).unwrap(),
        |about| about.begun.leave_running = true,
        |about| about.created_at_ms += 1,
        |about| about.image_bytes += 1,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut other = about("one");
        change(&mut other);
        assert_ne!(other.identity().unwrap(), one, "{number}");
    }
}

#[test]
fn notes_of_what_was_exported_outlive_it() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::beside(root.path());
    let kept = made(&store, "one");
    let receipt = store.receipt(&kept.about).unwrap();
    assert!(!receipt.exists() && store.receipts().unwrap().is_empty());
    kept.spoil_copies().unwrap();
    assert!(!receipt.exists(), "there are no copies");
    receipt.make().unwrap();
    receipt.make().unwrap();
    assert!(receipt.exists() && !receipt.is_used() && !receipt.is_moved());
    assert_eq!(store.all().unwrap().len(), 1);
    assert!(store.unfinished().unwrap().is_empty());
    kept.spoil_copies().unwrap();
    assert!(receipt.is_used());
    kept.remove().unwrap();
    assert!(store.all().unwrap().is_empty());
    let left = store.receipts().unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].0, begun().container);
    left[0].1.moved().unwrap();
    left[0].1.moved().unwrap();
    assert!(receipt.is_moved());
    // Exported again, it is still what it was.
    receipt.make().unwrap();
    assert!(receipt.is_used() && receipt.is_moved());
    receipt.remove().unwrap();
    assert!(!receipt.exists());
    // What is above it went with it; that is as it should be.
    receipt.remove().unwrap();
    assert_eq!(fs::read_dir(store.root()).unwrap().count(), 0);
}

#[test]
fn one_that_comes_from_an_archive_is_whole_with_its_name() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::beside(root.path());
    let name = CheckpointName::new("one").unwrap();
    let new = store.make_new(&begun().container, &name).unwrap();
    // What an agent that is killed leaves is removed, and nothing is done to the container.
    assert_eq!(store.unfinished().unwrap()[0].begun().unwrap(), None);
    new.describe(&about("one")).unwrap();
    fs::write(new.memory(), [7; 100]).unwrap();
    let kept = new.keep().unwrap();
    assert!(!kept.is_unfinished() && !kept.is_used());
}

#[test]
fn a_restore_that_was_ordered_ends_all_others_unless_it_surely_failed() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::beside(root.path());
    let one = made(&store, "one");
    let mut later = about("two");
    later.created_at_ms = 2;
    let new = store.begin(&later.name, &later.begun).unwrap();
    new.describe(&later).unwrap();
    let two = new.keep().unwrap();
    let mut other = about("gone");
    other.created_at_ms = 3;
    let copy = store.receipt(&other).unwrap();
    copy.make().unwrap();
    let noted = || (two.is_started_since(), copy.is_started_since());

    one.others_are_about_to_end("S").unwrap();
    assert_eq!(noted(), (true, true));
    assert!(!one.is_started_since());
    // Somebody else's order is not taken back, nor that of before another start.
    two.others_are_as_before(None).unwrap();
    one.others_are_as_before(Some("T")).unwrap();
    assert_eq!(noted(), (true, true));
    one.others_are_as_before(Some("S")).unwrap();
    assert_eq!(noted(), (false, false));

    one.others_are_about_to_end("S").unwrap();
    one.others_are_over().unwrap();
    // A later order that fails does not make it undone.
    one.others_are_about_to_end("S").unwrap();
    one.others_are_as_before(None).unwrap();
    assert_eq!(noted(), (true, true));
}

#[test]
fn a_run_is_known_by_another_time_once_the_engine_forgets_the_first() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::beside(root.path());
    let kept = |name: &str, started_at: &str, leave_running: bool| {
        let mut about = about(name);
        about.begun.started_at = started_at.into();
        about.begun.leave_running = leave_running;
        about.begun.restart_policy.name = "always".into();
        let new = store.make_new(&about.begun.container, &about.name).unwrap();
        new.describe(&about).unwrap();
        new.keep().unwrap()
    };
    let (back, waiting, older) = (
        kept("back", "S", true),
        kept("waiting", "R", false),
        kept("older", "Q", false),
    );
    assert!(waiting.is_of_run_begun("R") && !waiting.is_of_run_begun("S"));
    back.start_is_told_as("R", "S").unwrap();
    assert!(waiting.is_of_run_begun("R") && waiting.is_of_run_begun("S"));
    assert!(!waiting.is_of_run_begun("Q") && !older.is_of_run_begun("S"));

    // An order of before is known again, whether the engine has forgotten it or not.
    for told in ["R", "S"] {
        back.others_are_about_to_end("R").unwrap();
        back.others_are_as_before(Some("T")).unwrap();
        assert!(waiting.is_started_since());
        back.others_are_as_before(Some(told)).unwrap();
        assert!(!waiting.is_started_since(), "{told}");
    }

    // Which one has a policy parked shows from the order to its end.
    let waited = || back.waited_until_ordered().unwrap();
    assert_eq!(waited(), None);
    for start in ["R", "S"] {
        back.others_are_about_to_end(start).unwrap();
        assert_eq!(waited().as_ref(), Some(&waiting.about.begun), "{start}");
        back.others_are_as_before(None).unwrap();
    }
    back.others_are_about_to_end("Q").unwrap();
    assert_eq!(waited().as_ref(), Some(&older.about.begun));
    back.others_are_over().unwrap();
    assert_eq!(waited(), None);
}
