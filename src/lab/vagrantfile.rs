//! What Vagrant says of its machines: `vagrant status --machine-readable` and `vagrant ssh-config`.

use std::path::PathBuf;

use crate::model::cluster::{DEFAULT_PORT, SshTarget};

/// Names of the machines that run.
///
/// Lines are `time,name,kind,data`; of the kind `state` there is one for each machine.
pub fn parse_running(text: &str) -> Vec<String> {
    let running = |line: &str| {
        let mut parts = line.split(',').skip(1);
        let (name, kind, state) = (parts.next()?, parts.next()?, parts.next()?);
        (kind == "state" && state.trim() == "running").then(|| name.to_owned())
    };
    text.lines().filter_map(running).collect()
}

/// Machines and how their shells are reached.
///
/// It is OpenSSH's client configuration, as far as Vagrant writes it: one `Host` after the other, one value for each key
/// (several for `IdentityFile`), blanks in quotes.
pub fn parse_ssh_config(text: &str) -> Vec<(String, SshTarget)> {
    let mut all: Vec<(String, SshTarget)> = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once(char::is_whitespace) else { continue };
        let value = value.trim().trim_matches('"').to_owned();
        if key.eq_ignore_ascii_case("Host") {
            let target =
                SshTarget { host: value.clone(), port: DEFAULT_PORT, user: String::new(), keys: Vec::new() };
            all.push((value, target));
            continue;
        }
        let Some((_, target)) = all.last_mut() else { continue };
        match key.to_ascii_lowercase().as_str() {
            "hostname" => target.host = value,
            "user" => target.user = value,
            "port" => target.port = value.parse().unwrap_or(target.port),
            "identityfile" => target.keys.push(PathBuf::from(value)),
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_that_run() {
        let text = "1763800000,control,metadata,provider,libvirt\n\
                    1763800000,control,state,running\n\
                    1763800000,control,state-human-short,running\n\
                    1763800000,provisioner,state,not_created\n\
                    1763800000,,ui,info,Current machine states:\\n\\ncontrol  running (libvirt)\n";
        assert_eq!(parse_running(text), ["control"]);
    }

    #[test]
    fn shells_of_machines() {
        let text = "Host control
  HostName 192.168.121.171
  User root
  Port 2222
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile \"/home/me/my files/.vagrant/machines/control/libvirt/private_key\"
  IdentityFile /home/me/second
  IdentitiesOnly yes
  LogLevel FATAL

Host provisioner
  HostName 192.168.121.5
  User vagrant
";
        let all = parse_ssh_config(text);
        let (name, control) = &all[0];
        assert_eq!(
            (name.as_str(), control.host.as_str(), control.port),
            ("control", "192.168.121.171", 2222)
        );
        assert_eq!(
            control.keys[0].to_str(),
            Some("/home/me/my files/.vagrant/machines/control/libvirt/private_key")
        );
        assert_eq!(control.keys.len(), 2);
        assert_eq!((all[1].1.user.as_str(), all[1].1.port), ("vagrant", 22));
    }
}
