//! A rack server on the wire, asked by machines that are what they say and by others: which card, which attempt, which disk.
//!
//! The server is the real one in a network of the test's; the machines are `curl`. Needs root, ip, curl.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rackstep::lab::machine::Network;
use rackstep::model::progress::Silent;
use rackstep::ostree::repo::{CommitOptions, Mode, Repo};
use serde_json::{Value, json};

const SERVER: &str = "10.77.0.1";
const SOON: Duration = Duration::from_secs(30);
const UUID: &str = "4c4c4544-0042-3510-8052-b4c04f4e3533";
const CARD_A: &str = "52-54-00-00-00-0a";
const CARD_B: &str = "52-54-00-00-00-0b";

struct Rack {
    server: Option<Child>,
    network: Network,
    dir: tempfile::TempDir,
    commit: String,
}

/// A machine at work: its card, what it says it is, what is on its disk.
struct Machine<'r> {
    rack: &'r Rack,
    card: &'static str,
    query: String,
    disk: Value,
    secret: String,
}

impl Rack {
    fn start(hosts: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("tree/usr/lib/modules/6.1.0");
        fs::create_dir_all(&modules).unwrap();
        for name in ["vmlinuz", "initramfs.img"] {
            fs::write(modules.join(name), name).unwrap();
        }
        let repo = Repo::create(&dir.path().join("repo"), Mode::Archive).unwrap();
        let options = CommitOptions { reference: Some("stub/host".parse().unwrap()), ..Default::default() };
        let commit = repo.commit_tree(&dir.path().join("tree"), &options, &Silent).unwrap().commit.hex();
        let network = Network::create(&format!("{SERVER}/24")).unwrap();
        let mut rack = Self { server: None, network, dir, commit };
        rack.serve(hosts);
        rack
    }

    /// Starts the server anew, with another rack file and what it remembers.
    fn serve(&mut self, hosts: &str) {
        self.stop();
        let file = self.path("rack.yaml");
        let text = format!(
            "name: test\nnetwork: {{interface: rack0, address: {SERVER}/24, range: [10.77.0.100, 10.77.0.199]}}\n\
             ssh_keys: []\nprofiles:\n  stub: {{ref: stub/host}}\nhosts:\n{hosts}"
        );
        fs::write(&file, text).unwrap();
        let log = fs::File::create(self.path("serve.log")).unwrap();
        let mut command = self.network.command(env!("CARGO_BIN_EXE_rackstep"));
        command.args(["serve", "--no-dhcp", "--rack"]).arg(&file);
        command.arg("--repo").arg(self.path("repo")).arg("--state").arg(self.path("state"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(command.spawn().unwrap());
        if let Err(error) = self.network.wait_for_port(SERVER, 8080, SOON) {
            panic!("{error}\n{}", fs::read_to_string(self.path("serve.log")).unwrap());
        }
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = Command::new("kill").args(["-INT", &server.id().to_string()]).status();
            server.wait().unwrap();
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Status and body of an answer.
    fn curl(&self, path: &str, more: &[&str]) -> (u16, String) {
        let mut command = self.network.command("curl");
        command.args(["-sS", "-m", "20", "-w", "\n%{http_code}"]).args(more);
        let output = command.arg(format!("http://{SERVER}:8080{path}")).output().unwrap();
        assert!(output.status.success(), "{path}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    fn machine(&self, card: &'static str, query: &str) -> Machine<'_> {
        let disk = json!({"name": "vda", "size": 99_000_000_000_u64, "sector": 512, "model": null, "serial": "D1",
            "wwn": null, "by_path": [], "rotational": false, "removable": false, "transport": "virtio", "contents": []});
        Machine { rack: self, card, query: query.to_owned(), disk, secret: String::new() }
    }

    fn view(&self) -> Value {
        serde_json::from_str(&self.curl("/v1/machines", &[]).1).unwrap()
    }

    fn state(&self) -> Value {
        self.view()["machines"][0]["state"].clone()
    }
}

impl Drop for Rack {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Machine<'_> {
    /// Asks for its boot script; an installer's has a new secret.
    fn netboot(&mut self) -> String {
        let (status, script) = self.rack.curl(&format!("/boot/ipxe?mac={}{}", self.card, self.query), &[]);
        assert_eq!(status, 200);
        if let Some((_, rest)) = script.split_once("rackstep.secret=") {
            self.secret = rest.split_whitespace().next().unwrap().to_owned();
        }
        script
    }

    fn post(&self, what: &str, body: &Value) -> (u16, String) {
        let secret = format!("Authorization: Bearer {}", self.secret);
        let mut headers = vec!["-H", "Content-Type: application/json", "-d"];
        let body = body.to_string();
        headers.push(&body);
        if !self.secret.is_empty() {
            headers.extend(["-H", &secret]);
        }
        self.rack.curl(&format!("/v1/machines/{}/{what}", self.card), &headers)
    }

    fn inventory(&self) -> (u16, Value) {
        let body = json!({"uuid": null, "serial": null, "uefi": false, "memory": 1, "cpus": 1, "disks": [self.disk]});
        let (status, answer) = self.post("inventory", &body);
        (status, serde_json::from_str(&answer).unwrap_or(Value::String(answer)))
    }

    fn done(&self, order: &str) -> u16 {
        self.post("events", &json!({"order": order, "step": "done", "message": "", "progress": null})).0
    }

    fn booted(&self, commit: &str) -> u16 {
        self.post("booted", &json!({"commit": commit, "images": [], "ready": true})).0
    }

    /// What the installer leaves on the disk.
    fn install(&mut self, host: &str, generation: u32, state: &str) {
        let digest = rackstep::model::machine::secret_digest(&self.secret);
        self.disk["mark"] =
            json!({"host": host, "generation": generation, "order": "o", "state": state, "secret": digest});
        if state == "installed" {
            self.disk["contents"] =
                json!(["gpt partition table on vda", "xfs \"rackstep\" on vda4 (rackstep-root)"]);
        }
    }
}

const HOST: &str = "  - {name: control-3, uuid: 4C4C4544-0042-3510-8052-B4C04F4E3533, profile: stub, disk: {min_size: 1000, wipe: true}, reimage: 1}\n";
const DISK_SCRIPT: &str = "control-3 is installed; boots from its disk";

#[test]
fn an_order_belongs_to_the_host_whatever_card_asks_and_whatever_is_forgotten() {
    let query = format!("&uuid={UUID}");
    let mut rack = Rack::start(HOST);
    let (secret, disk) = {
        let mut machine = rack.machine(CARD_A, &query);
        assert!(machine.netboot().contains("starts the installer"));
        let (status, answer) = machine.inventory();
        assert_eq!(
            (status, &answer["answer"], &answer["order"]),
            (200, &json!("image"), &json!("control-3.1.1"))
        );
        machine.install("control-3", 1, "installed");
        assert_eq!(machine.done("control-3.1.1"), 204);
        assert_eq!(machine.booted(&rack.commit), 204);
        assert_eq!(rack.state(), "ready");
        machine.card = CARD_B;
        assert!(machine.netboot().contains(DISK_SCRIPT), "{}", machine.netboot());
        assert_eq!(rack.view()["machines"].as_array().unwrap().len(), 1);
        (machine.secret, machine.disk)
    };

    // The server's records are lost, `wipe: true` is still in the file: the disk tells.
    rack.stop();
    fs::remove_dir_all(rack.path("state")).unwrap();
    rack.serve(HOST);
    {
        let mut machine = rack.machine(CARD_B, &query);
        machine.disk = disk.clone();
        assert!(machine.netboot().contains("starts the installer"));
        let (status, answer) = machine.inventory();
        assert_eq!((status, &answer["answer"]), (200, &json!("boot-disk")), "{answer}");
        assert!(machine.netboot().contains(DISK_SCRIPT));
        assert_eq!(rack.state(), "installed");
        // Its host still has the secret of its installation, whose digest is on the disk.
        machine.secret = secret.clone();
        assert_eq!(machine.booted(&"ab".repeat(32)), 409, "no release of this repo");
        assert_eq!(machine.booted(&rack.commit), 204);
        assert_eq!(rack.state(), "ready");
    }

    // Raised since that installation, whoever has forgotten what: now it goes, once.
    let raised = HOST.replace("reimage: 1", "reimage: 2").replace(", wipe: true", "");
    rack.serve(&raised);
    let mut machine = rack.machine(CARD_A, &query);
    machine.disk = disk;
    machine.netboot();
    let (_, answer) = machine.inventory();
    assert_eq!(answer["order"], "control-3.2.1", "{answer}");
    machine.disk["mark"] = Value::Null;
    machine.disk["contents"] = json!(["ext4 of somebody else"]);
    machine.netboot();
    let (_, answer) = machine.inventory();
    assert_eq!(answer["answer"], "refuse", "a second attempt is checked like the first: {answer}");
    machine.disk["contents"] = json!([]);
    machine.install("control-3", 2, "unfinished");
    let (_, answer) = machine.inventory();
    assert_eq!(answer["order"], "control-3.2.2", "{answer}");
}

#[test]
fn nothing_is_believed_without_the_attempts_secret() {
    let rack = Rack::start(
        "  - {name: one, mac: '52:54:00:00:00:0a', profile: stub, disk: {serial: D1}}\n\
         \x20 - {name: two, mac: '52:54:00:00:00:02', profile: stub, disk: {serial: D2}}\n",
    );
    let mut machine = rack.machine(CARD_A, "");
    machine.netboot();
    machine.disk["contents"] = json!(["ext4 with customer data"]);
    let (_, answer) = machine.inventory();
    assert_eq!(answer["answer"], "refuse");

    // A stranger with all that the view tells, a blank disk of the right serial number, and its own secret.
    let view = rack.view().to_string();
    assert!(!view.contains(&machine.secret) && !view.contains("secret"), "{view}");
    let mut forger = rack.machine(CARD_A, "");
    for secret in ["", "5ec2e7", " ", "00000000000000000000000000000000"] {
        secret.clone_into(&mut forger.secret);
        assert_eq!(forger.inventory().0, 403, "{secret:?}");
        assert_eq!(forger.done("one.0.1"), 403, "{secret:?}");
        assert_eq!(forger.booted(&rack.commit), 403, "{secret:?}");
    }
    let mut stranger = rack.machine("52-54-00-00-00-99", "");
    assert!(stranger.netboot().contains("not in the rack file"));
    assert_eq!(stranger.inventory().0, 403);

    // The real one goes on. The secret of an attempt is void when the next one has reported.
    machine.disk["contents"] = json!([]);
    assert_eq!(machine.inventory().1["order"], "one.0.1");
    let former = rack.machine(CARD_A, "").with(&machine.secret);
    machine.netboot();
    assert_eq!(
        former
            .post("events", &json!({"order": "one.0.1", "step": "pull", "message": "", "progress": null}))
            .0,
        204
    );
    assert_eq!(machine.booted(&rack.commit), 403, "an installer that was not answered is no host");
    assert_eq!(machine.inventory().1["order"], "one.0.2");
    assert_eq!(former.done("one.0.2"), 403);
    // It is this host's secret and no other's: the path says nothing.
    machine.card = "52-54-00-00-00-02";
    assert_eq!(machine.done("two.0.1"), 204);
    assert_eq!(rack.view()["machines"][1]["state"], "waiting");
    assert_eq!(machine.done("one.0.2"), 204);
    assert_eq!(
        (rack.state(), rack.view()["machines"][1]["state"].clone()),
        (json!("imaged"), json!("waiting"))
    );
}

#[test]
fn two_machines_of_one_identity_are_not_one() {
    let rack = Rack::start(HOST);
    let mut first = rack.machine(CARD_A, &format!("&uuid={UUID}&serial=S1"));
    first.netboot();
    assert_eq!(first.inventory().1["answer"], "image");
    let mut second = rack.machine(CARD_B, &format!("&uuid={UUID}&serial=S2"));
    let script = second.netboot();
    assert!(script.contains("is not touched") && !script.contains("installer of"), "{script}");
    let view = rack.view().to_string();
    assert!(view.contains("52:54:00:00:00:0a") && view.contains("52:54:00:00:00:0b"), "{view}");
    // By its disks, where its firmware says the same.
    let mut clone = rack.machine(CARD_B, &format!("&uuid={UUID}&serial=S1"));
    clone.netboot();
    clone.disk["serial"] = json!("D2");
    let (_, answer) = clone.inventory();
    assert_eq!(answer["answer"], "refuse");
    let reasons = answer["reasons"].to_string();
    assert!(reasons.contains("52:54:00:00:00:0a") && reasons.contains("52:54:00:00:00:0b"), "{reasons}");
    // The same machine by its other card.
    let mut other_card = rack.machine("52-54-00-00-00-0c", &format!("&uuid={UUID}&serial=S1"));
    other_card.netboot();
    assert_eq!(other_card.inventory().1["answer"], "image");
    // Stock identities are nobody's.
    let mut stock = rack
        .machine("52-54-00-00-00-77", "&uuid=03000200-0400-0500-0006-000700080009&serial=Default%20string");
    assert!(stock.netboot().contains("not in the rack file"));
}

impl Machine<'_> {
    fn with(mut self, secret: &str) -> Self {
        secret.clone_into(&mut self.secret);
        self
    }
}

/// Every fault of the file, the machine and the repo is told before anything is served.
#[test]
fn a_rack_that_cannot_work_is_told_by_check_and_at_the_start() {
    let rack = Rack::start("  - {name: a, mac: '52:54:00:00:00:0a', profile: stub}\n");
    let network = "network: {interface: rack0, address: 10.77.0.1/24, range: [10.77.0.100, 10.77.0.199]}\n";
    let key = "trusted_keys: [11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=]\n";
    let file = |text: String| {
        fs::write(rack.path("faulty.yaml"), text).unwrap();
        let run = |more: &[&str]| {
            let mut command = rack.network.command(env!("CARGO_BIN_EXE_rackstep"));
            command.args(["serve", "--no-dhcp", "--rack"]).arg(rack.path("faulty.yaml")).args(more);
            command.arg("--state").arg(rack.path("other-state"));
            let output = command.output().unwrap();
            (output.status.code(), String::from_utf8(output.stderr).unwrap())
        };
        let checked = run(&["--check"]);
        // A good rack would be served until somebody stops it.
        if checked.0 != Some(0) {
            assert_eq!(run(&[]), checked, "the start tells what --check tells");
        }
        checked
    };
    let repo = format!("repo: {}\n", rack.path("repo").display());
    let rest = "ssh_keys: []\nprofiles: {stub: {ref: stub/host}}\nhosts: []\n";
    let good = format!("name: x\n{network}{repo}{rest}");
    assert_eq!(file(good.clone()).0, Some(0), "{:?}", file(good.clone()));
    for (from, to, expected) in [
        (
            "interface: rack0",
            "interface: rack7",
            "faulty.yaml:2:22: this machine has no interface \"rack7\", only",
        ),
        (
            "10.77.0.1/24",
            "10.77.0.2/24",
            "faulty.yaml:2:38: 10.77.0.2 is no address of this machine: ip address add",
        ),
        ("/repo\n", "/no-repo\n", "faulty.yaml:3:7: repo "),
        (
            "ref: stub/host",
            "ref: stub/hots",
            "profile \"stub\": the repo has no ref stub/hots; it has stub/host",
        ),
        ("stub/host}", "stub/host, release: 9.9.9}", "faulty.yaml:5:44: profile \"stub\": "),
        ("ssh_keys: []\n", "", "faulty.yaml: no ssh key: nobody could log in to a host"),
        ("ssh_keys: []\n", "ssh_keys: [ssh-rsa x]\n", "\"ssh-rsa x\" is not a line of authorized_keys"),
        ("ssh_keys", "trusted_keys: [x]\nssh_keys", "faulty.yaml:4:16: \"x\" is not an ed25519 public key"),
        ("ssh_keys", &format!("{key}ssh_keys"), "is not signed, and 1 trusted key(s) ask for a signature"),
    ] {
        assert!(good.contains(from), "{from}");
        let (code, told) = file(good.replacen(from, to, 1));
        assert_eq!(code, Some(2), "{from}: {told}");
        assert!(told.contains(expected), "{told}\nexpected {expected}");
        assert!(told.trim_end().ends_with("state: nothing served, nothing changed"), "{told}");
    }
    let (_, told) = file(good.replace("rack0", "rack7").replace("/repo\n", "/no-repo\n"));
    assert!(told.contains("no interface") && told.contains("cannot be opened"), "{told}");
}
