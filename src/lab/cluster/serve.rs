//! Serves a release repo where the machines of a cluster look for releases, for as long as a rollout needs it.

use std::io;
use std::net::TcpListener;
use std::path::Path;

use reqwest::Url;

use super::observe::followed;
use super::{ClusterError, Host};
use crate::lab::machine::Network;
use crate::rack::repo::RepoServer;

/// Serves `repo` at each address of this machine where the machines look for releases.
///
/// An address that is somebody else's, or that something serves already, is left alone: the machines will tell if no
/// release can be had there.
pub fn serve(
    hosts: &[Host<'_>],
    network: Option<&Network>,
    repo: &Path,
) -> Result<Vec<RepoServer>, ClusterError> {
    let mut servers = Vec::new();
    for url in followed(hosts) {
        let failed = |source| ClusterError::Serve { repo: repo.to_owned(), url: url.clone(), source };
        let Some((host, port, path)) = parse_url(&url) else { continue };
        let bind = || TcpListener::bind((host.as_str(), port));
        let bound = match network {
            Some(network) => network.inside(bind)?,
            None => bind(),
        };
        match bound {
            Ok(listener) => servers.push(RepoServer::start(listener, &path, repo).map_err(failed)?),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) =>
            {
                tracing::info!(url, %error, "not ours to serve");
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(servers)
}

/// Host, port and path of a repo over HTTP.
fn parse_url(text: &str) -> Option<(String, u16, String)> {
    let url = Url::parse(text).ok().filter(|url| url.scheme() == "http")?;
    Some((url.host_str()?.to_owned(), url.port_or_known_default()?, url.path().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repos_that_can_be_served() {
        let parsed = |text: &str| parse_url(text).map(|(host, port, path)| format!("{host} {port} {path}"));
        assert_eq!(parsed("http://10.90.0.1:8080").as_deref(), Some("10.90.0.1 8080 /"));
        assert_eq!(parsed("http://10.77.0.1:8080/repo").as_deref(), Some("10.77.0.1 8080 /repo"));
        assert_eq!(parsed("https://releases.example/"), None);
        assert_eq!(parsed("/srv/repo"), None);
    }
}
