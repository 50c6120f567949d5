//! `rackstep status`.

use clap::Args;

use super::host::{HostArguments, NOTHING_CHANGED, name_of};
use super::{Failure, Kind, NO_KEY, print_json, print_line};
use crate::host::status::{observe_newest, observe_status};
use crate::model::deployment::{Role, name_release};
use crate::model::status::{BootStatus, ContainerStatus, NewestStatus, Status};

/// Show every deployment with its release and images, and what runs against what is pinned.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print it as JSON, format 1.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    host: HostArguments,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let sysroot = arguments.host.open_sysroot()?;
    let deployments =
        sysroot.deployments().map_err(|error| Failure::new(Kind::Failed, error, NOTHING_CHANGED))?;
    // A host without Docker or configuration still has deployments to tell about.
    let docker = arguments.host.connect_docker();
    let config_path = arguments.host.config_path(&sysroot, &deployments);
    // A host without a configuration is not configured; one that cannot be read is a fault to be told at the end.
    let read = config_path.exists().then(|| arguments.host.read_config(&config_path));
    let (config, broken) = match read.transpose() {
        Ok(config) => (config, None),
        Err(failure) => (None, Some(failure)),
    };
    let places = arguments.host.places(&sysroot, &deployments);
    let memory = places.newest();
    let newest = config.as_ref().map(|config| observe_newest(&memory, config)).transpose();
    let newest = newest.map_err(|error| Failure::new(Kind::Failed, error, NOTHING_CHANGED))?.flatten();
    let root = &arguments.host.docker_root;
    let status = observe_status(&sysroot, docker.as_ref().ok(), root, &places, config.as_ref(), newest)
        .map_err(|error| Failure::new(Kind::Failed, error, NOTHING_CHANGED))?;
    if arguments.json {
        print_json(&status)?;
    } else {
        for line in render_status(&status, broken.is_some()) {
            print_line(&line);
        }
        if config.is_some_and(|config| config.trusted_keys.is_empty()) {
            print_line(&format!("warning   {NO_KEY}"));
        }
    }
    broken.map_or(Ok(()), |failure| Err(failure.of_kind(Kind::Failed)))
}

/// The status as lines of text.
fn render_status(status: &Status, broken: bool) -> Vec<String> {
    let unnamed = if broken { "(its configuration cannot be read)" } else { "(not configured)" };
    let mut lines = Vec::new();
    let address = status.address.as_ref().map(|address| format!(" ({address})")).unwrap_or_default();
    lines.push(format!("host      {}{address}", status.host.as_deref().unwrap_or(unnamed)));
    lines.push(format!("kernel    {}", status.kernel));
    lines.extend(status.unlocked.iter().map(|why| format!("UNLOCKED  {why}")));
    lines.extend(status.newest.as_ref().map(render_newest));
    lines.extend(status.boot.as_ref().map(render_boot));
    for entry in &status.deployments {
        let deployment = &entry.deployment;
        let mark = if deployment.next_boot { '▶' } else { ' ' };
        lines.push(format!("{mark} {:<13} release {}", role_name(deployment.role), name_of(deployment)));
        for image in &entry.images {
            let present = match image.present {
                Some(true) => "present",
                // Recorded when it is booted.
                Some(false) if deployment.role != Role::Booted => "at its boot",
                Some(false) if status.boot.is_some() => "not yet",
                Some(false) => "MISSING",
                None => "unknown",
            };
            lines.push(format!("    {:<20} {}  {present}", image.name, &image.config.hex()[..12]));
        }
    }
    lines.push(
        format!("services  {}", if status.services.is_empty() { "none" } else { "" }).trim_end().to_owned(),
    );
    let booting = status.boot.is_some();
    lines.extend(status.services.iter().map(|container| render_container(container, booting)));
    lines.extend(status.waiting.iter().map(|reason| format!("waiting   {reason}")));
    lines.push("▶ is what the next boot takes".to_owned());
    lines
}

fn render_newest(newest: &NewestStatus) -> String {
    let name = name_release(newest.release.version.as_deref(), newest.release.commit);
    format!("newest    {name} of {}, made {} ago", newest.reference, age(newest.age))
}

/// An age in the largest unit that gives at least two.
fn age(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7_200 => (seconds / 60, "min"),
        7_200..172_800 => (seconds / 3_600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{count} {unit}")
}

fn render_boot(boot: &BootStatus) -> String {
    let BootStatus { since, up, all } = boot;
    format!("boot      bringing services up, {up} of {all}, since {since} s")
}

fn render_container(container: &ContainerStatus, booting: bool) -> String {
    let state = match container.running {
        Some(running) if running == container.expected => "runs as pinned".to_owned(),
        Some(running) => format!("RUNS ANOTHER IMAGE: {}", &running.hex()[..12]),
        None if booting => "not yet".to_owned(),
        None => "does not run".to_owned(),
    };
    format!(
        "    {:<20} {}  {state}",
        format!("{}/{}", container.pod, container.container),
        &container.expected.hex()[..12]
    )
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::StagedLocked => "prepared",
        Role::Staged => "staged",
        Role::Pending => "pending",
        Role::Booted => "booted",
        Role::Rollback => "rollback",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::newest::KnownRelease;
    use crate::model::status::{DeploymentStatus, ImageStatus};
    use crate::model::{Deployment, DeploymentId};

    /// Nothing is missing before its boot is over, and nobody is sent to `verify --repair`.
    #[test]
    fn what_a_boot_has_not_brought_up_is_not_missing() {
        let expected = crate::model::Digest::of(b"image");
        let container = |pod: &str, runs: bool| ContainerStatus {
            pod: pod.to_owned(),
            container: "main".to_owned(),
            image: pod.to_owned(),
            expected,
            running: runs.then_some(expected),
        };
        let services = vec![container("a", true), container("b", false)];
        let image = ImageStatus { name: "b".to_owned(), config: expected, present: Some(false) };
        let deployment = Deployment {
            id: DeploymentId {
                stateroot: "rackstep".to_owned(),
                commit: "a".repeat(64).parse().unwrap(),
                serial: 0,
            },
            role: Role::Booted,
            next_boot: true,
            version: Some("1.0.0".to_owned()),
            path: String::new(),
        };
        let mut status = Status {
            format: 1,
            host: Some("control-1".to_owned()),
            address: Some("10.0.0.5".to_owned()),
            newest: None,
            booted: None,
            boot: Some(BootStatus::new(40, &services)),
            kernel: "6".to_owned(),
            deployments: vec![DeploymentStatus { deployment, images: vec![image] }],
            services,
            unlocked: None,
            waiting: Vec::new(),
        };
        let text = render_status(&status, false).join("\n");
        for part in
            ["control-1 (10.0.0.5)", "boot      bringing services up, 1 of 2, since 40 s", "runs as pinned"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(text.matches("not yet").count(), 2, "{text}");
        status.boot = None;
        let text = render_status(&status, false).join("\n");
        assert!(
            text.contains("MISSING") && text.contains("does not run") && !text.contains("boot  "),
            "{text}"
        );
    }

    #[test]
    fn a_repo_without_news_is_seen_by_the_age_of_its_newest() {
        let commit = "a".repeat(64).parse().unwrap();
        for (seconds, told) in
            [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7_200, "2 h"), (40 * 86_400, "40 days")]
        {
            let release = KnownRelease { commit, version: Some("1.2.0".to_owned()), created: 1 };
            let newest = NewestStatus { reference: "main".to_owned(), release, age: seconds };
            let expected = format!("newest    1.2.0 (aaaaaaaaaa) of main, made {told} ago");
            assert_eq!(render_newest(&newest), expected);
        }
    }
}
