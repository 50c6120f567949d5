//! `make demo`: the program's main job on this machine, told for people.
//!
//! 1. two releases are composed, each with a host's operating system, keystone and MariaDB; 2. a blank machine is imaged with
//!    the first over PXE, in QEMU; 3. the very disk that was imaged is started: in the same machine where KVM works, else as a
//!    container on this machine's own kernel; 4. upgrade; 5. rollback, with the rack server gone; 6. a table.
//!
//! `PLATFORM=qemu` stays in QEMU, `PLATFORM=container` leaves it after imaging in any case. `KEEP=1` leaves the host up as a
//! developer's cluster. `FRESH=1` composes although both releases are there. Needs root.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a program for people

mod inputs;
mod keep;
mod terminal;

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rackstep::lab::machine::accelerator::{self, Accelerator};
use rackstep::lab::machine::container::{VERB, probe};
use rackstep::lab::machine::{Firmware, Network};
use rackstep::lab::story::{Composed, Observed, Rack, Releases, Story, StoryError};

use inputs::Inputs;
use terminal::{Terminal, say};

/// From power on to the end of the installer. Emulated processors are slow.
const IMAGING: Duration = Duration::from_secs(20 * 60);
/// From a start to all services running.
const BOOT: Duration = Duration::from_secs(30 * 60);
/// How the stages are called, and how long they took where nothing was measured here yet: two cores without KVM, warm caches
/// but for the releases. The third number is for a host in QEMU's emulation.
const STAGES: [(&str, u32, u32); 11] = [
    ("lock first release", 60, 60),
    ("compose first release", 130, 130),
    ("lock second release", 45, 45),
    ("compose second release", 300, 300),
    (IMAGE, 150, 150),
    (FIRST_BOOT, 30, 460),
    (PREPARE, 10, 370),
    (COMMIT, 5, 65),
    (SECOND_BOOT, 20, 450),
    (ROLLBACK, 2, 90),
    (BACK, 20, 330),
];
const IMAGE: &str = "image a blank machine over PXE";
const FIRST_BOOT: &str = "first boot to services";
const PREPARE: &str = "upgrade: prepare";
const COMMIT: &str = "upgrade: commit";
const SECOND_BOOT: &str = "reboot into 2.0.0, to services";
const ROLLBACK: &str = "rollback";
const BACK: &str = "reboot into 1.0.0, to services";

/// Where the imaged disk goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Platform {
    Qemu,
    Container,
}

fn main() -> ExitCode {
    // A container's launcher is this very program, started anew.
    if std::env::args().nth(1).is_some_and(|part| part == VERB) {
        return rackstep::cli::run();
    }
    let began = Instant::now();
    match tell(began) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut causes = format!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                causes.push_str(&format!("\n  because: {cause}"));
                source = cause.source();
            }
            eprintln!(
                "{causes}\nstate: nothing of the demonstration runs any more; what was composed is kept"
            );
            ExitCode::FAILURE
        }
    }
}

fn tell(began: Instant) -> Result<(), Box<dyn Error>> {
    if !rustix::process::geteuid().is_root() {
        return Err("networks, loop devices and packages need root: sudo make demo".into());
    }
    let program = std::env::current_exe()?.with_file_name("").join("../rackstep").canonicalize()?;
    let checkout = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (platform, why) = choose_platform()?;
    let inputs = Inputs::open(&program, &checkout)?;
    let terminal = Terminal::new(&inputs.times());
    say("rackstep: one commit carries a host's operating system and the services that run on it.");
    say(&format!(
        "The imaged host runs {}: {why}.\n",
        match platform {
            Platform::Qemu => "in the machine that was imaged",
            Platform::Container => "as a container, from the very disk that was imaged",
        }
    ));
    let all = STAGES
        .map(|(name, container, qemu)| (name, if platform == Platform::Qemu { qemu } else { container }));
    terminal.announce(&all, |name| inputs.is_there(name));

    let releases = match std::env::var_os("RACKSTEP_STORY_REPO") {
        Some(repo) => Releases::Given(repo.into()),
        None => Releases::Kept(inputs.dir.clone()),
    };
    let mut story = Story::begin(&program, releases, &terminal)?;
    let composed = compose(&mut story, &checkout)?;
    let network = Rack::network()?;
    let rack = run_host(&mut story, &network, &composed, platform)?;
    inputs.remember(story.timings())?;
    println!("the whole story: {:.0} s", began.elapsed().as_secs_f64());
    if std::env::var("KEEP").is_ok_and(|keep| keep == "1") {
        keep::keep(&story, rack, platform == Platform::Container)?;
    }
    Ok(())
}

fn choose_platform() -> Result<(Platform, String), Box<dyn Error>> {
    match std::env::var("PLATFORM").as_deref().unwrap_or("auto") {
        "qemu" => Ok((Platform::Qemu, "as asked for".to_owned())),
        "container" => Ok((Platform::Container, "as asked for".to_owned())),
        "auto" | "" => {
            if accelerator::choose()? == Accelerator::Kvm {
                return Ok((Platform::Qemu, "a kernel boots by KVM here".to_owned()));
            }
            Ok(match probe::probe() {
                Ok(()) => (Platform::Container, "no kernel boots by KVM here".to_owned()),
                Err(error) => (Platform::Qemu, format!("emulated, since {error}")),
            })
        }
        other => Err(format!("PLATFORM={other}: it is auto, container or qemu").into()),
    }
}

fn compose(story: &mut Story<'_>, checkout: &Path) -> Result<[Composed; 2], StoryError> {
    say("\n1. Two releases are composed: Debian with Docker and kubelet, and keystone, MariaDB and memcached as
   container images, file by file, in one signed commit each. Another kernel, another keystone in 2.0.0.");
    let first = story.compose("first release", &checkout.join("host-image/openstack-host.yaml"), "1.0.0")?;
    let second =
        story.compose("second release", &checkout.join("tests/releases/openstack-host-2.yaml"), "2.0.0")?;
    Ok([first, second])
}

fn run_host<'n>(
    story: &mut Story<'_>,
    network: &'n Network,
    [first, second]: &[Composed; 2],
    platform: Platform,
) -> Result<Rack<'n>, StoryError> {
    let teller = story.teller();
    say("\n2. A blank machine is switched on beside a rack server. Its firmware asks the network (PXE); the installer
   looks, is told which disk, pulls release 1.0.0, checks signature and objects, and writes the boot sector last.");
    let mut rack = Rack::start(network, story, &first.version, Firmware::Bios)?;
    story.on = rack.runs_on();
    story.timed(IMAGE, || rack.image_machine(IMAGING, teller))?;

    if platform == Platform::Container {
        say("\n3. The disk is taken out of the emulated machine: its mark names this host and this order. It boots on this
   machine's own kernel: the release's systemd, Docker, kubelet and pods, unchanged.");
        rack.go_on_as_container()?;
        story.on = rack.runs_on();
    } else {
        say("\n3. The machine restarts from its disk.");
    }
    let host = rack.host();
    let services = |commit: &str| host.wait_until_services_run(commit, BOOT, teller);
    let before = story.timed(FIRST_BOOT, || services(&first.commit))?;
    before.require_exactly(first)?;
    host.require_token()?;
    rack.require_ready()?;
    teller.moved("keystone issued a token; the host told the rack server that all its services run");

    say("\n4. Upgrade. Prepare pulls and verifies 2.0.0 beside what runs; the next boot is untouched. Commit makes it the
   next boot in one rename: kernel, system and services together.");
    let prepared = story.timed(PREPARE, || host.rackstep_json(&["upgrade", "--json"], teller))?;
    story.pulled = prepared["bytes_pulled"].as_u64();
    require(host.next_boot()? == first.commit, "prepare leaves the next boot alone")?;
    let committed = story.timed(COMMIT, || host.rackstep_json(&["upgrade", "--commit", "--json"], teller))?;
    require(committed["bytes_pulled"] == 0, "what is prepared is not pulled again")?;
    require(host.next_boot()? == second.commit, "commit makes 2.0.0 the next boot")?;
    let after = story.timed(SECOND_BOOT, || {
        rack.reboot_machine()?;
        services(&second.commit)
    })?;
    after.require_exactly(second)?;
    host.require_token()?;

    say(
        "\n5. Rollback. The rack server is switched off: no repo, no registry, no network is needed for the way back.",
    );
    rack.stop_server();
    story.timed(ROLLBACK, || host.rackstep(&["rollback"], teller))?;
    let back = story.timed(BACK, || {
        rack.reboot_machine()?;
        services(&first.commit)
    })?;
    back.require_exactly(first)?;
    host.require_token()?;
    require(back == before, "everything is as it was before the upgrade")?;
    finish(story, [first, second], [&before, &after, &back]);
    Ok(rack)
}

fn finish(story: &Story<'_>, releases: [&Composed; 2], [before, after, back]: [&Observed; 3]) {
    say("\n6. What was done, how long it took and on what it ran, and what was seen:");
    let seen = [("before", before), ("after the upgrade", after), ("after the rollback", back)];
    println!("{}", story.render_table(&releases, &seen));
}

fn require(holds: bool, what: &str) -> Result<(), StoryError> {
    if holds { Ok(()) } else { Err(StoryError::Wrong(format!("it does not hold that {what}"))) }
}
