//! Kernel arguments: one that is taken stands in iPXE's script as one word, and changes nothing beside it.
//!
//! Input: an argument.

use std::sync::OnceLock;

use rackstep::model::kernel_argument::problem_of;
use rackstep::model::rack::RackNetwork;
use rackstep::rack::netboot::ipxe::render_installer;
use rackstep::rack::netboot::kernel::{Machine, render_arguments};

static NETWORK: OnceLock<RackNetwork> = OnceLock::new();

fn network() -> &'static RackNetwork {
    NETWORK.get_or_init(|| {
        let text = "{interface: rack0, address: 10.77.0.1/24, range: [10.77.0.100, 10.77.0.199]}";
        serde_yaml_ng::from_str(text).expect("a network")
    })
}

fn script(arguments: &[String]) -> String {
    let mac = "52:54:00:00:00:01".parse().expect("a card");
    let address = "10.77.0.11/24".parse().expect("an address");
    let all = render_arguments(network(), Machine { mac, address, secret: "5ec2e7" }, arguments);
    let commit = rackstep::model::Commit::from_bytes([0x11; 32]);
    render_installer("http://10.77.0.1:8080", "one", commit, &all)
}

/// The words of a line as iPXE runs it: up to a comment, or to what ends a command (`src/core/exec.c`).
fn command(line: &str) -> Vec<&str> {
    let is_end = |word: &&str| word.starts_with('#') || ["||", "&&", ";"].contains(word);
    line.split_whitespace().take_while(|word| !is_end(word)).collect()
}

pub fn run(data: &[u8]) {
    let Ok(argument) = std::str::from_utf8(data) else { return };
    if problem_of(argument).is_some() {
        return;
    }
    let (plain, script) = (script(&[]), script(&[argument.to_owned(), "last".to_owned()]));
    assert_eq!(script.lines().count(), plain.lines().count());
    for (line, without) in script.lines().zip(plain.lines()) {
        if !line.starts_with("kernel ") {
            assert_eq!(line, without);
            continue;
        }
        let mut expected = command(without);
        expected.extend([argument, "last"]);
        assert_eq!(command(line), expected);
        assert!(!line.contains("${"));
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let texts = ["quiet", "console=ttyS0,115200n8", "memmap=64M$1G", "a=${b}", "x=a;b", "||", "#a", "a b", "'", "&&"];
    texts.map(|text| text.as_bytes().to_vec()).to_vec()
}
