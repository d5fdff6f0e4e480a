//! Schedules that found something once find nothing any more.

use std::path::Path;

use evertwin_simulator::{kept, run};

#[test]
fn kept_schedules_break_nothing() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("kept");
    let kept = kept(&directory).expect("schedules can be read");
    assert!(!kept.is_empty());
    for kept in kept {
        let violation = run(&kept.schedule, None).violation;
        assert_eq!(violation, None, "{}", kept.path.display());
    }
}
