//! `KEEP=1`: the imaged disk goes on as the only machine of a developer's cluster.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use rackstep::lab::cluster::Home;
use rackstep::lab::cluster::home::clusters_dir;
use rackstep::lab::story::{Rack, Story, run};

use super::terminal::say;

const NAME: &str = "rackstep-demo";
/// Pods may take their time to end.
const SHUTDOWN: Duration = Duration::from_secs(180);

/// Shuts the host down, lays its disk into a cluster, and brings that up.
pub fn keep(story: &Story<'_>, mut rack: Rack<'_>, container: bool) -> Result<(), Box<dyn Error>> {
    say("\nThe host goes on as a developer's cluster, since KEEP=1 says so.");
    rack.switch_off(SHUTDOWN)?;
    let disk = rack.disk().ok_or("the machine has no disk")?;
    let dir = PathBuf::from("/var/tmp").join(NAME);
    fs::create_dir_all(&dir)?;
    let file = dir.join("cluster.yaml");
    let platform = if container { "container" } else { "qemu" };
    fs::write(
        &file,
        format!(
            "name: {NAME}\nrepo: {}\nrelease: 1.0.0\nplatform: {platform}\ntrusted_keys: {}\n\
             control: {{memory: 4096, cpus: 2}}\n",
            story.repo().display(),
            serde_json::json!(story.trusted_keys()?),
        ),
    )?;
    let cluster = |verb: &str| {
        let mut command: Command = story.rackstep();
        command.args(["cluster", verb]).current_dir(&dir);
        command
    };
    let home = Home::new(&clusters_dir(), NAME);
    if home.dir.exists() {
        run(&mut cluster("down"))?;
    }
    let mut adopt = cluster("adopt");
    adopt.arg("control").arg(&disk);
    adopt.arg("--key").arg(story.work().join("ssh-key"));
    run(&mut adopt)?;
    drop(rack);
    run(&mut cluster("up"))?;
    say(&format!(
        "\nIt is up. To try by hand:\n  cd {}\n  PATH={}:$PATH\n  rackstep cluster status\n  rackstep cluster ssh control\n  \
         rackstep cluster exec control -- rackstep status\n  rackstep cluster upgrade 2.0.0\n  rackstep cluster rollback\n  \
         rackstep cluster down                   # removes it",
        dir.display(),
        story.rackstep().get_program().to_string_lossy().trim_end_matches("/rackstep"),
    ));
    Ok(())
}
