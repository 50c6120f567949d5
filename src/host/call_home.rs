//! Tells the rack server what booted: only this makes a machine "installed" there.
//!
//! It is said once a boot, when the due phases have run. A server that does not answer never holds a boot up: the caller
//! logs it and goes on.

use std::time::Duration;

use crate::model::HostConfig;
use crate::model::imaging::BootedReport;

/// A server in the same rack answers within milliseconds, or is not there.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is tried: the network of a host that just booted may not be up yet.
const ATTEMPTS: u32 = 6;

/// Between two attempts.
const PAUSE: Duration = Duration::from_secs(5);

/// Posts `report` to the rack server that imaged this host, with the host's secret. False: there is none to call.
pub fn call_home(config: &HostConfig, secret: &str, report: &BootedReport) -> Result<bool, reqwest::Error> {
    let (Some(server), Some(mac)) = (&config.rack_server, &config.mac) else { return Ok(false) };
    let url = booted_url(server, mac);
    let client = crate::rim::tls::blocking_client().timeout(TIMEOUT).build()?;
    let mut attempt = 1;
    loop {
        match client
            .post(&url)
            .bearer_auth(secret)
            .json(report)
            .send()
            .and_then(reqwest::blocking::Response::error_for_status)
        {
            Ok(_) => return Ok(true),
            Err(error) if attempt >= ATTEMPTS || error.is_status() => return Err(error),
            Err(error) => {
                tracing::info!(%error, attempt, "the rack server does not answer yet");
                std::thread::sleep(PAUSE);
                attempt += 1;
            }
        }
    }
}

fn booted_url(server: &str, mac: &str) -> String {
    let mac = mac.to_ascii_lowercase().replace(':', "-");
    format!("{}/v1/machines/{mac}/booted", server.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_has_the_mac_as_ipxe_prints_it() {
        assert_eq!(
            booted_url("http://10.77.0.1:8080/", "52:54:00:00:00:0A"),
            "http://10.77.0.1:8080/v1/machines/52-54-00-00-00-0a/booted"
        );
    }
}
