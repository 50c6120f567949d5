//! What a boot has to do: which phases are due, in which order, and which pods wait for them.
//!
//! 1. Order the phases: as the release lists them, but never before what they need;
//! 2. decide each by what ran already: bootstrap once per state, expand and migrate once per image, contract after a
//!    confirm;
//! 3. a pod waits for those of its phases that are due, and for nothing else.
//!
//! **A release never runs a migration that a newer one has run**: no service can downgrade its database, and an old
//! `db_sync` on a newer schema fails while the old service itself serves fine on it. So a rollback runs nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::model::{Commit, Digest, Phase, PhaseJournal, PhaseKind, PhaseRecord, PhaseSet, PinSet};

/// What a boot has to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootPlan {
    /// Every phase of the release, in the order in which they run.
    pub phases: Vec<PlannedPhase>,
    /// Every pod of the release.
    pub pods: Vec<PlannedPod>,
}

/// One phase and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedPhase {
    /// The phase.
    pub phase: Phase,
    /// Config digest of its image.
    pub image: Digest,
    /// Run it or not, and why.
    pub decision: Decision,
}

/// Why a phase runs, or does not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "decision", rename_all = "kebab-case")]
pub enum Decision {
    /// It has not run on this state (bootstrap) or not from this image (expand, migrate).
    Run,
    /// It ran already.
    Done {
        /// The release that ran it.
        release: Commit,
    },
    /// A newer release ran it: ours would not understand what is there.
    NewerRan {
        /// The release that ran it.
        release: Commit,
    },
    /// Contract phases wait until the release is confirmed.
    WaitsForConfirm,
}

/// One pod and what it waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedPod {
    /// Its name.
    pub name: String,
    /// Due phases that must run before it starts; empty: it starts now.
    pub waits_for: Vec<String>,
}

/// What makes a release's phases impossible to plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootPlanError {
    /// Two phases of one id.
    #[error("phase {0} is there twice")]
    Twice(String),
    /// A phase whose image is not pinned.
    #[error("phase {phase} runs from image {image}, which is not in the pin set")]
    Image {
        /// The phase.
        phase: String,
        /// The image's name.
        image: String,
    },
    /// Something that nobody knows.
    #[error("{who} needs {what}, which this release does not have")]
    Unknown {
        /// A phase or a pod.
        who: String,
        /// What it names.
        what: String,
    },
    /// Phases that wait for one another.
    #[error("phases {} wait for one another", .0.join(", "))]
    Circle(Vec<String>),
}

/// Name in the pin set of the image that holds a pod's namespaces.
pub const PAUSE: &str = "pause";

/// What has to wait because an image is not there, by name, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KeptOut {
    /// Pods.
    pub pods: BTreeMap<String, String>,
    /// Due phases.
    pub phases: BTreeMap<String, String>,
}

impl KeptOut {
    /// Whether nothing has to wait.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.phases.is_empty()
    }
}

/// Decides what has to wait while images are `absent`, by their names in the pin set, each with its reason; `images` has
/// those of each pod. What needs something that waits has to wait too; all else runs.
pub fn keep_out(
    plan: &BootPlan,
    images: &BTreeMap<String, BTreeSet<String>>,
    absent: &BTreeMap<String, String>,
) -> KeptOut {
    let lacks = |image: &str| absent.get(image).map(|why| format!("image {image} is not in docker: {why}"));
    let mut kept = KeptOut::default();
    for pod in &plan.pods {
        let of_pod = images.get(&pod.name).into_iter().flatten().map(String::as_str);
        if let Some(why) = [PAUSE].into_iter().chain(of_pod).find_map(lacks) {
            kept.pods.insert(pod.name.clone(), why);
        }
    }
    let due = || plan.phases.iter().filter(|planned| planned.decision == Decision::Run);
    loop {
        let before = kept.clone();
        for planned in due() {
            let phase = &planned.phase;
            let needs = |need: &String| match need.split_once('/') {
                Some(("pod", pod)) if kept.pods.contains_key(pod) => {
                    Some(format!("it needs pod {pod}, which waits"))
                }
                Some(("phase", id)) if kept.phases.contains_key(id) => {
                    Some(format!("it needs phase {id}, which waits"))
                }
                _ => None,
            };
            if let Some(why) = lacks(&phase.image).or_else(|| phase.needs.iter().find_map(needs)) {
                kept.phases.entry(phase.id.clone()).or_insert(why);
            }
        }
        for pod in &plan.pods {
            if let Some(phase) = pod.waits_for.iter().find(|phase| kept.phases.contains_key(*phase)) {
                let why = || format!("phase {phase} has to run first, which waits");
                kept.pods.entry(pod.name.clone()).or_insert_with(why);
            }
        }
        if kept == before {
            return kept;
        }
    }
}

/// Pods that a phase needs, by name.
pub fn needed_pods(phase: &Phase) -> impl Iterator<Item = &str> {
    phase.needs.iter().filter_map(|need| need.strip_prefix("pod/"))
}

/// Decides what a boot of the release has to do. `created` is the time of its lock, `confirmed` whether its trial is over.
pub fn plan_boot(
    phases: &PhaseSet,
    pins: &PinSet,
    pods: &BTreeSet<String>,
    created: u64,
    confirmed: bool,
    journal: &PhaseJournal,
) -> Result<BootPlan, BootPlanError> {
    let ordered = order(phases, pods)?;
    let mut planned = Vec::new();
    for phase in ordered {
        let image = pins
            .images
            .get(&phase.image)
            .ok_or_else(|| BootPlanError::Image { phase: phase.id.clone(), image: phase.image.clone() })?
            .config;
        let decision = decide(phase, image, created, confirmed, journal);
        planned.push(PlannedPhase { phase: phase.clone(), image, decision });
    }
    let is_due = |id: &&String| {
        planned.iter().any(|planned| planned.phase.id == **id && planned.decision == Decision::Run)
    };
    let pods = pods
        .iter()
        .map(|name| {
            let after = phases.pods_after.get(name).map(Vec::as_slice).unwrap_or_default();
            PlannedPod { name: name.clone(), waits_for: after.iter().filter(is_due).cloned().collect() }
        })
        .collect();
    Ok(BootPlan { phases: planned, pods })
}

fn decide(phase: &Phase, image: Digest, created: u64, confirmed: bool, journal: &PhaseJournal) -> Decision {
    let mut records = journal.records.iter().filter(|record| record.phase == phase.id).rev();
    let done = |record: &PhaseRecord| Decision::Done { release: record.release };
    match phase.kind {
        PhaseKind::Contract if !confirmed => Decision::WaitsForConfirm,
        PhaseKind::Bootstrap => records.next().map_or(Decision::Run, done),
        PhaseKind::Expand | PhaseKind::Migrate | PhaseKind::Contract => {
            let records: Vec<_> = records.collect();
            if let Some(record) = records.iter().find(|record| record.image == image) {
                done(record)
            } else if let Some(newer) = records.iter().find(|record| record.created > created) {
                Decision::NewerRan { release: newer.release }
            } else {
                Decision::Run
            }
        }
    }
}

/// Puts phases behind what they need, and otherwise leaves them in their order.
fn order<'a>(phases: &'a PhaseSet, pods: &BTreeSet<String>) -> Result<Vec<&'a Phase>, BootPlanError> {
    let mut needs: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for phase in &phases.phases {
        if needs.insert(&phase.id, BTreeSet::new()).is_some() {
            return Err(BootPlanError::Twice(phase.id.clone()));
        }
    }
    let unknown = |who: String, what: &str| BootPlanError::Unknown { who, what: what.to_owned() };
    for (pod, after) in &phases.pods_after {
        let who = || format!("pod {pod}");
        if !pods.contains(pod) {
            return Err(unknown("pods_after".to_owned(), pod));
        }
        if let Some(phase) = after.iter().find(|phase| !needs.contains_key(phase.as_str())) {
            return Err(unknown(who(), phase));
        }
    }
    for phase in &phases.phases {
        let who = || format!("phase {}", phase.id);
        if !pods.contains(&phase.pod) {
            return Err(unknown(who(), &phase.pod));
        }
        let mut before: BTreeSet<&str> = BTreeSet::new();
        for need in &phase.needs {
            match need.split_once('/') {
                Some(("phase", id)) if needs.contains_key(id) => {
                    before.insert(id);
                }
                Some(("pod", pod)) if pods.contains(pod) => {
                    // The pod itself waits for these.
                    before.extend(phases.pods_after.get(pod).into_iter().flatten().map(String::as_str));
                }
                _ => return Err(unknown(who(), need)),
            }
        }
        needs.insert(&phase.id, before);
    }
    let mut ordered: Vec<&Phase> = Vec::new();
    let mut left: Vec<&Phase> = phases.phases.iter().collect();
    while !left.is_empty() {
        let placed: BTreeSet<&str> = ordered.iter().map(|phase| phase.id.as_str()).collect();
        let next = left
            .iter()
            .position(|phase| needs.get(phase.id.as_str()).is_none_or(|before| before.is_subset(&placed)));
        match next {
            Some(next) => ordered.push(left.remove(next)),
            None => return Err(BootPlanError::Circle(left.iter().map(|phase| phase.id.clone()).collect())),
        }
    }
    Ok(ordered)
}

impl std::fmt::Display for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Run => f.write_str("due"),
            Self::Done { release } => write!(f, "ran already (release {})", release.short()),
            Self::NewerRan { release } => {
                write!(f, "left alone: the newer release {} ran it", release.short())
            }
            Self::WaitsForConfirm => f.write_str("waits until the release is confirmed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PinnedImage;

    fn phase(id: &str, kind: PhaseKind, image: &str, needs: &[&str]) -> Phase {
        Phase {
            id: id.to_owned(),
            service: "test".to_owned(),
            kind,
            image: image.to_owned(),
            command: vec![id.to_owned()],
            env: BTreeMap::new(),
            pod: image.to_owned(),
            needs: needs.iter().map(|need| (*need).to_owned()).collect(),
            user: None,
        }
    }

    /// The phases of our database and keystone, keystone named first.
    fn phases() -> PhaseSet {
        PhaseSet {
            format: 1,
            phases: vec![
                phase("ks-database", PhaseKind::Bootstrap, "keystone", &["pod/mariadb"]),
                phase("ks-expand", PhaseKind::Expand, "keystone", &["pod/mariadb", "phase/ks-database"]),
                phase("ks-migrate", PhaseKind::Migrate, "keystone", &["phase/ks-expand"]),
                phase("ks-admin", PhaseKind::Bootstrap, "keystone", &["phase/ks-migrate"]),
                phase("ks-contract", PhaseKind::Contract, "keystone", &["phase/ks-migrate"]),
                phase("db-init", PhaseKind::Bootstrap, "mariadb", &[]),
            ],
            pods_after: BTreeMap::from([
                ("mariadb".to_owned(), vec!["db-init".to_owned()]),
                ("keystone".to_owned(), vec!["ks-migrate".to_owned(), "ks-admin".to_owned()]),
            ]),
        }
    }

    fn pods() -> BTreeSet<String> {
        ["keystone", "mariadb", "memcached"].map(str::to_owned).into()
    }

    fn pins(keystone: &str) -> PinSet {
        let image = |content: &str| PinnedImage {
            reference: content.to_owned(),
            manifest: Digest::of(b"m"),
            config: Digest::of(content.as_bytes()),
            layers: Vec::new(),
        };
        let images =
            [("keystone", image(keystone)), ("mariadb", image("mariadb"))].map(|(n, i)| (n.to_owned(), i));
        PinSet { format: 1, images: images.into() }
    }

    fn commit(digit: char) -> Commit {
        String::from(digit).repeat(64).parse().unwrap()
    }

    /// Ids that run on a boot of the release, each put into the journal.
    fn boot(keystone: &str, release: char, created: u64, journal: &mut PhaseJournal) -> Vec<String> {
        let plan = plan_boot(&phases(), &pins(keystone), &pods(), created, false, journal).unwrap();
        let due: Vec<PlannedPhase> =
            plan.phases.into_iter().filter(|planned| planned.decision == Decision::Run).collect();
        for planned in &due {
            journal.records.push(PhaseRecord {
                phase: planned.phase.id.clone(),
                image: planned.image,
                release: commit(release),
                created,
            });
        }
        due.into_iter().map(|planned| planned.phase.id).collect()
    }

    const FIRST: [&str; 5] = ["db-init", "ks-database", "ks-expand", "ks-migrate", "ks-admin"];

    #[test]
    fn upgrade_rollback_upgrade() {
        let mut journal = PhaseJournal::default();
        for (what, keystone, release, created, runs) in [
            ("first boot", "27", 'a', 1, FIRST.as_slice()),
            ("reboot", "27", 'a', 1, &[]),
            ("upgrade", "28", 'b', 2, &["ks-expand", "ks-migrate"]),
            ("rollback", "27", 'a', 1, &[]),
            ("upgrade again", "28", 'b', 2, &[]),
            ("security update", "28.1", 'c', 3, &["ks-expand", "ks-migrate"]),
            ("rollback by two", "27", 'a', 1, &[]),
            ("an old release that never ran here", "26", '0', 0, &[]),
        ] {
            assert_eq!(boot(keystone, release, created, &mut journal), runs, "{what}");
        }
    }

    #[test]
    fn a_cut_boot_goes_on_where_it_was() {
        let mut whole = PhaseJournal::default();
        boot("27", 'a', 1, &mut whole);
        for done in 0..=FIRST.len() {
            let mut journal = PhaseJournal { records: whole.records[..done].to_vec(), ..whole.clone() };
            assert_eq!(boot("27", 'a', 1, &mut journal), FIRST[done..]);
            assert_eq!(journal, whole);
        }
    }

    #[test]
    fn pods_wait_for_due_phases_alone() {
        let mut journal = PhaseJournal::default();
        let waits = |journal: &PhaseJournal, keystone: &str| -> Vec<(String, Vec<String>)> {
            let plan = plan_boot(&phases(), &pins(keystone), &pods(), 1, false, journal).unwrap();
            plan.pods.into_iter().map(|pod| (pod.name, pod.waits_for)).collect()
        };
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let expect = |keystone: &[&str], mariadb: &[&str]| {
            vec![
                ("keystone".to_owned(), texts(keystone)),
                ("mariadb".to_owned(), texts(mariadb)),
                ("memcached".to_owned(), Vec::new()),
            ]
        };
        assert_eq!(waits(&journal, "27"), expect(&["ks-migrate", "ks-admin"], &["db-init"]));
        boot("27", 'a', 1, &mut journal);
        assert_eq!(waits(&journal, "27"), expect(&[], &[]));
        assert_eq!(waits(&journal, "28"), expect(&["ks-migrate"], &[]));
    }

    #[test]
    fn contract_waits_for_a_confirm() {
        let plan = plan_boot(&phases(), &pins("27"), &pods(), 1, false, &PhaseJournal::default()).unwrap();
        let contract = plan.phases.iter().find(|planned| planned.phase.id == "ks-contract").unwrap();
        assert_eq!(contract.decision, Decision::WaitsForConfirm);
    }

    #[test]
    fn what_cannot_be_planned_is_named() {
        let error = |change: &dyn Fn(&mut PhaseSet)| {
            let mut phases = phases();
            change(&mut phases);
            let result = plan_boot(&phases, &pins("27"), &pods(), 1, false, &PhaseJournal::default());
            result.unwrap_err().to_string()
        };
        for (change, text) in [
            (
                &(|set: &mut PhaseSet| set.phases[0].needs = vec!["pod/nova".to_owned()])
                    as &dyn Fn(&mut PhaseSet),
                "phase ks-database needs pod/nova, which this release does not have",
            ),
            (
                &|set| set.phases[5].needs = vec!["phase/ks-admin".to_owned()],
                "phases ks-database, ks-expand, ks-migrate, ks-admin, ks-contract, db-init wait for one another",
            ),
            (
                &|set| set.phases[0].image = "nova".to_owned(),
                "phase ks-database runs from image nova, which is not in the pin set",
            ),
            (&|set| set.phases[1].id = "ks-database".to_owned(), "phase ks-database is there twice"),
            (
                &|set| set.phases[1].pod = "nova".to_owned(),
                "phase ks-expand needs nova, which this release does not have",
            ),
        ] {
            assert_eq!(error(change), text);
        }
    }

    #[test]
    fn what_needs_an_image_that_is_not_there_waits_and_nothing_else() {
        let pod = |name: &str, waits_for: &[&str]| PlannedPod {
            name: name.to_owned(),
            waits_for: waits_for.iter().map(|phase| (*phase).to_owned()).collect(),
        };
        let phase = |id: &str, image: &str, needs: &[&str]| {
            let needs: Vec<String> = needs.iter().map(|need| (*need).to_owned()).collect();
            let phase = Phase {
                id: id.to_owned(),
                service: image.to_owned(),
                kind: PhaseKind::Expand,
                image: image.to_owned(),
                command: vec![],
                env: BTreeMap::new(),
                pod: image.to_owned(),
                needs,
                user: None,
            };
            PlannedPhase { phase, image: Digest::of(image.as_bytes()), decision: Decision::Run }
        };
        let plan = BootPlan {
            phases: vec![
                phase("keystone-db", "keystone", &["pod/mariadb"]),
                phase("glance-db", "glance", &["pod/mariadb", "phase/keystone-db"]),
                phase("horizon-static", "horizon", &[]),
            ],
            pods: vec![
                pod("mariadb", &[]),
                pod("keystone", &["keystone-db"]),
                pod("glance", &["glance-db"]),
                pod("horizon", &["horizon-static"]),
                pod("memcached", &[]),
            ],
        };
        let images: BTreeMap<String, BTreeSet<String>> =
            plan.pods.iter().map(|pod| (pod.name.clone(), [pod.name.clone()].into())).collect();
        for (absent, pods, phases) in [
            ("none", vec![], vec![]),
            ("memcached", vec!["memcached"], vec![]),
            ("glance", vec!["glance"], vec!["glance-db"]),
            ("keystone", vec!["glance", "keystone"], vec!["glance-db", "keystone-db"]),
            ("mariadb", vec!["glance", "keystone", "mariadb"], vec!["glance-db", "keystone-db"]),
            (
                PAUSE,
                vec!["glance", "horizon", "keystone", "mariadb", "memcached"],
                vec!["glance-db", "keystone-db"],
            ),
        ] {
            let why = BTreeMap::from([(absent.to_owned(), "layer 1 is damaged".to_owned())]);
            let kept = keep_out(&plan, &images, &why);
            assert_eq!(kept.pods.keys().collect::<Vec<_>>(), pods, "{absent}");
            assert_eq!(kept.phases.keys().collect::<Vec<_>>(), phases, "{absent}");
        }
        let why = BTreeMap::from([("keystone".to_owned(), "layer 1 is damaged".to_owned())]);
        let kept = keep_out(&plan, &images, &why);
        assert_eq!(kept.pods["keystone"], "image keystone is not in docker: layer 1 is damaged");
        assert_eq!(kept.pods["glance"], "phase glance-db has to run first, which waits");
        assert_eq!(kept.phases["glance-db"], "it needs phase keystone-db, which waits");
    }
}
