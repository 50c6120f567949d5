//! The program's main job on real parts, told and timed: for the demonstration (`make demo`) and the tests of whole machines.
//!
//! 1. [`Story::compose`]: two releases in one repo, by `rackstep lock` and `rackstep compose`;
//! 2. [`Rack`]: a rack server in a network namespace images a blank virtual machine over PXE; the very disk that was imaged
//!    can go on as a host on this machine's own kernel ([`Rack::go_on_as_container`]);
//! 3. [`Host`]: the imaged host over ssh: its verbs, its services, a token of its keystone;
//! 4. [`table`]: what was composed, how long each stage took and on what it ran, what was seen.
//!
//! It judges nothing by itself: [`Observed::require_exactly`] and the like say what is not as it should be.

mod compose;
mod host;
mod meter;
mod rack;
mod table;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::lab::machine::MachineError;

pub use compose::Composed;
pub use host::{Host, Observed};
pub use meter::Meter;
pub use rack::Rack;
pub use table::Seen;

/// Why a story did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum StoryError {
    /// A virtual machine, a container, or the network.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A file or process.
    #[error("{what}")]
    Io {
        /// The operation.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A program that must succeed did not; it told why on stderr.
    #[error("{command}: {status}")]
    Failed {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// An answer that has no meaning.
    #[error("{from} answered {answer:?}")]
    Answer {
        /// Who answered.
        from: String,
        /// What.
        answer: String,
    },
    /// A condition did not come true in time.
    #[error("{waited} did not happen within {} s: {last}", bound.as_secs())]
    Timeout {
        /// What was waited for.
        waited: String,
        /// How long.
        bound: Duration,
        /// What was seen last.
        last: String,
    },
    /// Something is not as the story says.
    #[error("{0}")]
    Wrong(String),
}

impl StoryError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// Listens to a story.
pub trait Teller: Send + Sync {
    /// A timed stage begins.
    fn begin(&self, stage: &str);
    /// Where the stage is: a short line, as often as there is news.
    fn moved(&self, what: &str);
    /// The stage is over.
    fn end(&self, stage: &str, took: Duration);
}

/// Tells a story in plain lines on stderr.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Plain {
    fn line(line: &str) {
        let _ = writeln!(io::stderr(), "{line}");
    }
}

impl Teller for Plain {
    fn begin(&self, stage: &str) {
        Self::line(&format!("--- {stage}"));
    }

    fn moved(&self, what: &str) {
        Self::line(&format!("    {what}"));
    }

    fn end(&self, stage: &str, took: Duration) {
        Self::line(&format!("--- {stage}: {:.1} s", took.as_secs_f64()));
    }
}

/// What a stage ran on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timing {
    /// The stage.
    pub name: String,
    /// What it ran on.
    pub on: String,
    /// How long it took.
    pub took: Duration,
}

/// Where the releases come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Releases {
    /// Composed into a repo that goes with the story.
    New,
    /// Composed into a directory that stays, unless they were there: whoever names it says that it belongs to these very
    /// inputs.
    Kept(PathBuf),
    /// A repo that somebody else composed, with a key that nobody here has.
    Given(PathBuf),
}

/// One run of the story.
pub struct Story<'t> {
    program: PathBuf,
    work: tempfile::TempDir,
    releases: Releases,
    /// Signs every release; the hosts trust nothing else.
    key: PathBuf,
    teller: &'t dyn Teller,
    timings: Vec<Timing>,
    /// What the stages run on from now on.
    pub on: String,
    /// Bytes that the upgrade pulled.
    pub pulled: Option<u64>,
}

impl<'t> Story<'t> {
    /// Begins one with the `program` rackstep.
    pub fn begin(program: &Path, releases: Releases, teller: &'t dyn Teller) -> Result<Self, StoryError> {
        let work = tempfile::Builder::new()
            .prefix("rackstep-story-")
            .tempdir_in("/var/tmp")
            .map_err(StoryError::io("making a directory in /var/tmp"))?;
        let key = match &releases {
            Releases::Kept(dir) => dir.join("release-key"),
            _ => work.path().join("release-key"),
        };
        let program = program.to_owned();
        let on = "this machine".to_owned();
        let story = Self { program, work, releases, key, teller, timings: Vec::new(), on, pulled: None };
        if !matches!(story.releases, Releases::Given(_)) && !story.key.exists() {
            run(story.rackstep().args(["release", "keygen"]).arg(&story.key))?;
        }
        Ok(story)
    }

    /// The program.
    pub fn rackstep(&self) -> Command {
        Command::new(&self.program)
    }

    /// Its directory, which goes with it.
    pub fn work(&self) -> &Path {
        self.work.path()
    }

    /// Who listens.
    pub fn teller(&self) -> &'t dyn Teller {
        self.teller
    }

    /// The file of the keys that hosts trust; none for a repo that was composed before, by somebody with another key.
    pub fn public_key(&self) -> Option<PathBuf> {
        (!matches!(self.releases, Releases::Given(_))).then(|| self.key.with_extension("pub"))
    }

    /// What that file says.
    pub fn trusted_keys(&self) -> Result<Vec<String>, StoryError> {
        let Some(file) = self.public_key() else { return Ok(Vec::new()) };
        let text =
            std::fs::read_to_string(&file).map_err(StoryError::io(format!("reading {}", file.display())))?;
        Ok(text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect())
    }

    /// The repo of the releases.
    pub fn repo(&self) -> PathBuf {
        match &self.releases {
            Releases::New => self.work().join("repo"),
            Releases::Kept(dir) => dir.join("repo"),
            Releases::Given(repo) => repo.clone(),
        }
    }

    /// Runs `act` and remembers how long it took.
    pub fn timed<R>(&mut self, name: &str, act: impl FnOnce() -> R) -> R {
        self.teller.begin(name);
        let began = Instant::now();
        let result = act();
        let took = began.elapsed();
        self.teller.end(name, took);
        self.timings.push(Timing { name: name.to_owned(), on: self.on.clone(), took });
        result
    }

    /// What took how long, in order.
    pub fn timings(&self) -> &[Timing] {
        &self.timings
    }
}

/// Runs a command that must succeed; gives its stdout. Its stderr goes to the story's.
pub fn run(command: &mut Command) -> Result<String, StoryError> {
    let name = format!("{command:?}");
    let output =
        command.stderr(Stdio::inherit()).output().map_err(StoryError::io(format!("starting {name}")))?;
    if !output.status.success() {
        return Err(StoryError::Failed { command: name, status: output.status });
    }
    String::from_utf8(output.stdout)
        .map_err(|error| StoryError::Answer { from: name, answer: error.to_string() })
}
