//! OpenStack from a composed release to a server that answers through a floating IP, on a host of this machine's own kernel,
//! by the ordinary `openstack` client and from outside the host: what `make openstack` prints.
//!
//! `RACKSTEP_OPENSTACK_REPO` may name a repo that has release 1.0.0 of the profile already. Needs root.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rackstep::lab::cluster::Home;
use rackstep::lab::machine::{Network, Ssh, SshKey, tiny};
use rackstep::lab::story::Story;
use rackstep::rim::cache_dir::cache_dir;
use rackstep::rim::wait::poll;
use serde_json::Value;
use support::story::{begin, checkout, run};

const HOST: &str = "10.90.0.11";
/// Addresses of the outside world's end of OVN, and of servers in it.
const OUTSIDE: &str = "172.24.9";
/// A server is up and answers, emulated on a machine that composes other things beside it.
const ANSWER: Duration = Duration::from_secs(5 * 60);
/// What the client is, and no other: its answers are read.
const CLIENT: &str = "python-openstackclient==10.5.0";
/// A server without a disk of its own: it takes an address by DHCP and answers pings.
const GUEST: &str = r#"cat > /bin/lease <<'END'
#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ifconfig $interface $ip netmask $subnet mtu ${mtu:-1400} up
for each in $router; do route add default gw $each; break; done
END
chmod +x /bin/lease
ifconfig lo up; ifconfig eth0 up
udhcpc -i eth0 -s /bin/lease -t 20 -T 3 -n -q
echo "the server is up"
while :; do sleep 3600; done
"#;

/// A cluster of one host, taken down whatever happens.
struct Site {
    dir: tempfile::TempDir,
    name: String,
}

impl Site {
    fn new(story: &Story<'_>) -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let name = format!("openstack-{}", std::process::id());
        let text = format!(
            "name: {name}\nrepo: {}\nrelease: 1.0.0\nplatform: container\ndisk: 20\ntrusted_keys: {:?}\n\
             control: {{memory: 8192, cpus: 2}}\n",
            story.repo().display(),
            story.trusted_keys().unwrap(),
        );
        fs::write(dir.path().join("cluster.yaml"), text).unwrap();
        Self { dir, name }
    }

    fn cluster(&self, arguments: &[&str]) -> Command {
        let mut command = support::story::rackstep();
        command.arg("cluster").args(arguments).current_dir(self.dir.path());
        command.env("XDG_STATE_HOME", self.dir.path()).stdin(Stdio::null());
        command
    }

    fn home(&self) -> Home {
        Home::new(&self.dir.path().join("rackstep/clusters"), &self.name)
    }

    fn network(&self) -> Network {
        Network::open(&self.home().network_name()).unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.cluster(&["down"]).output();
    }
}

/// The ordinary client, outside the host.
struct Client<'n> {
    network: &'n Network,
    program: PathBuf,
    authority: PathBuf,
    password: String,
}

impl Client<'_> {
    fn command(&self, words: &str) -> Command {
        let mut command = self.network.command(self.program.to_str().unwrap());
        command.args(words.split_whitespace());
        for (name, value) in [
            ("OS_AUTH_URL", format!("https://{HOST}/identity/v3")),
            ("OS_CACERT", self.authority.display().to_string()),
            ("OS_PASSWORD", self.password.clone()),
        ] {
            command.env(name, value);
        }
        for name in ["OS_USERNAME", "OS_PROJECT_NAME"] {
            command.env(name, "admin");
        }
        for name in ["OS_USER_DOMAIN_NAME", "OS_PROJECT_DOMAIN_NAME"] {
            command.env(name, "Default");
        }
        command.env("OS_IDENTITY_API_VERSION", "3").env("OS_REGION_NAME", "RegionOne");
        command
    }

    fn say(&self, words: &str) {
        run(&mut self.command(words));
    }

    fn ask(&self, words: &str) -> Value {
        serde_json::from_str(&run(self.command(words).args(["-f", "json"]))).unwrap()
    }

    fn id(&self, words: &str) -> String {
        self.ask(words)["id"].as_str().unwrap_or_else(|| panic!("no id from {words}")).to_owned()
    }
}

/// The client's program, installed into the cache once.
fn client_program() -> PathBuf {
    let home = cache_dir().unwrap().join("openstack-client");
    let program = home.join("bin/openstack");
    if !program.exists() {
        run(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&home));
        run(Command::new(home.join("bin/pip")).args(["install", "--quiet", CLIENT]));
    }
    program
}

/// Kernel, initramfs and an empty disk of the server, in `dir`.
fn make_guest(dir: &Path) {
    let kernel = tiny::kernel().unwrap();
    fs::copy(&kernel.vmlinuz, dir.join("kernel")).unwrap();
    tiny::initramfs(&kernel, "/init", GUEST, &dir.join("ramdisk")).unwrap();
    fs::File::create(dir.join("disk")).unwrap().set_len(8 << 20).unwrap();
}

fn upload(client: &Client<'_>, dir: &Path) {
    let file = |name: &str| dir.join(name).display().to_string();
    let kernel = client.id(&format!(
        "image create --disk-format aki --container-format aki --file {} kernel",
        file("kernel")
    ));
    let ramdisk = client.id(&format!(
        "image create --disk-format ari --container-format ari --file {} ramdisk",
        file("ramdisk")
    ));
    let properties = format!("--property kernel_id={kernel} --property ramdisk_id={ramdisk}");
    let image = format!(
        "image create --disk-format raw --container-format bare --file {} {properties} guest",
        file("disk")
    );
    client.say(&image);
}

fn make_networks(client: &Client<'_>) {
    for words in [
        "network create inside",
        "subnet create --network inside --subnet-range 192.168.9.0/24 inside",
        "router create router",
        "router add subnet router inside",
        "network create --external --provider-network-type flat --provider-physical-network physnet1 outside",
    ] {
        client.say(words);
    }
    client.say(&format!(
        "subnet create --network outside --subnet-range {OUTSIDE}.0/24 --gateway {OUTSIDE}.1 --no-dhcp \
         --allocation-pool start={OUTSIDE}.100,end={OUTSIDE}.200 outside"
    ));
    client.say("router set --external-gateway outside router");
    let rule = "security group rule create --protocol icmp";
    let project = client.id("project show admin");
    let groups = client.ask(&format!("security group list --project {project}"));
    client.say(&format!("{rule} {}", groups[0]["ID"].as_str().unwrap()));
}

/// The site's router, which here is the host: the network beyond OVN is a bridge on it.
fn route_outside(network: &Network, ssh: &Ssh<'_>) {
    ssh.text(&format!(
        "ip address replace {OUTSIDE}.1/24 dev br-ex && ip link set br-ex up && \
         iptables -I FORWARD -i br-ex -j ACCEPT && iptables -I FORWARD -o br-ex -j ACCEPT"
    ))
    .unwrap();
    run(network.command("ip").args(["route", "replace", &format!("{OUTSIDE}.0/24"), "via", HOST]));
}

/// By busybox, as a machine that composes need not have a `ping` of its own.
fn wait_for_a_ping(network: &Network, address: &str) {
    let busybox = tiny::kernel().unwrap().busybox;
    let pinged = poll(ANSWER, || {
        let mut command = network.command(busybox.to_str().unwrap());
        let output = command.args(["ping", "-c", "1", "-W", "2", address]).output()?;
        Ok::<_, std::io::Error>(output.status.success().then_some(()))
    });
    pinged.unwrap().unwrap_or_else(|| panic!("{address} does not answer"));
}

/// Memory of each pod's processes in MB, as the kernel shares it out (PSS).
const MEMORY: &str = r#"for c in $(docker ps -q --filter label=io.kubernetes.docker.type=container); do
name=$(docker inspect -f '{{index .Config.Labels "io.kubernetes.container.name"}}' $c); sum=0
for p in $(docker top $c -o pid | tail -n +2); do
pss=$(awk '/^Pss:/ {print $2}' /proc/$p/smaps_rollup 2>/dev/null); sum=$((sum + ${pss:-0})); done
echo "$name $((sum / 1024))"; done | sort"#;

#[test]
fn from_a_release_to_a_server_that_answers() {
    let mut story = begin("RACKSTEP_OPENSTACK_REPO");
    story.compose("all-in-one", &checkout("host-image/all-in-one.yaml"), "1.0.0").unwrap();
    let program = client_program();
    let site = Site::new(&story);
    story.timed("disk of the release, and power on", || run(&mut site.cluster(&["up", "--until=power"])));
    story.timed("first boot, phases, every service ready", || run(&mut site.cluster(&["up"])));
    let network = site.network();
    let ssh = Ssh::new(&network, &SshKey::create(&site.home().dir).unwrap(), "root", HOST);
    let authority = site.dir.path().join("ca.pem");
    fs::write(&authority, ssh.text("cat /var/lib/rackstep/state/proxy-tls/ca.pem").unwrap()).unwrap();
    let password = ssh.text("cat /var/lib/rackstep/secrets/keystone-admin-password").unwrap();
    let client = Client { network: &network, program, authority, password: password.trim().to_owned() };

    story.timed("a token, by TLS", || client.say("token issue"));
    make_guest(site.dir.path());
    story.timed("images uploaded", || upload(&client, site.dir.path()));
    story.timed("networks and a router", || make_networks(&client));
    story.timed("a flavor", || client.say("flavor create --ram 128 --disk 1 --vcpus 1 tiny"));
    story.timed("a server, ACTIVE", || {
        client.say("server create --image guest --flavor tiny --network inside --wait server");
    });
    assert_eq!(client.ask("server show server")["status"], "ACTIVE");
    let address = story.timed("a floating IP", || {
        let made = client.ask("floating ip create outside");
        let address = made["floating_ip_address"].as_str().unwrap().to_owned();
        client.say(&format!("server add floating ip server {address}"));
        route_outside(&network, &ssh);
        address
    });
    story.timed("the server answers from outside", || wait_for_a_ping(&network, &address));

    println!("\nmemory of services (MB, PSS)\n{}", ssh.text(MEMORY).unwrap());
    println!("{}", story.render_timings());
}
