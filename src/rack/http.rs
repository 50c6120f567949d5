//! The rack server's HTTP: boot scripts and files, the release repo, and the machine API of [`crate::model::imaging`].
//!
//! Whoever is on the rack's network may ask for boot scripts, files and the view. What machines report needs the secret that
//! netboot handed to that attempt; what can be done by asking is bounded by the rack file, and by what is on the disks.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;

use super::boot_files::ReleaseFiles;
use super::files::{FileRoot, answer_file};
use super::neighbours;
use super::records::{Records, Subject};
use super::view::{RackView, render_page};
use super::{RackError, RackEvent, RackOptions, Teller};
use crate::imaging::plan::{BootAnswer, Situation, installed_here, plan_boot, plan_imaging};
use crate::model::Commit;
use crate::model::causes::in_one_line;
use crate::model::deployment::name_release;
use crate::model::identity::{machine_serial, machine_uuid, normal_uuid};
use crate::model::imaging::{BootedReport, ImagingAnswer, Inventory, MachineEvent};
use crate::model::machine::{Claim, MachineRecord, secret_digest};
use crate::model::printable;
use crate::model::rack::{AddressWithPrefix, Mac, Rack, RackHost};
use crate::rack::netboot::dnsmasq::UEFI_PROGRAM;
use crate::rack::netboot::{ipxe, kernel};
use crate::rim::clock::now;

/// What all requests share.
#[derive(Debug)]
pub(super) struct RackServer {
    pub(super) rack: Rack,
    pub(super) files: ReleaseFiles,
    pub(super) records: Records,
    pub(super) tell: Teller,
    pub(super) options: RackOptions,
}

/// All routes.
pub(super) fn router(server: Arc<RackServer>, repo: FileRoot) -> Router {
    let reports = Router::new()
        .route("/v1/machines/{mac}/inventory", post(inventory))
        .route("/v1/machines/{mac}/events", post(event))
        .route("/v1/machines/{mac}/booted", post(booted))
        .layer(DefaultBodyLimit::max(LARGEST_REPORT))
        .layer(middleware::from_fn_with_state(server.clone(), require_secret));
    Router::new()
        .route("/", get(page))
        .route("/v1/machines", get(machines))
        .merge(reports)
        .route("/boot/ipxe", get(script))
        .route("/boot/{program}", get(boot_program))
        .route("/boot/{commit}/{name}", get(release_file))
        .nest_service("/repo", repo.router())
        .with_state(server)
}

/// Bytes of the largest report: an inventory of many disks.
const LARGEST_REPORT: usize = 256 << 10;
/// How long a report may take to arrive: a slow one holds its memory.
const REPORT_ARRIVES: Duration = Duration::from_secs(30);

/// Looks for the secret before a byte of the body is read: strangers cost a head.
async fn require_secret(State(server): Shared, request: Request, next: Next) -> Response {
    let known =
        secret_of(request.headers()).and_then(|secret| server.records.find_secret(&secret_digest(&secret)));
    if known.is_none() {
        return Trouble(RackError::NoSecret).into_response();
    }
    match tokio::time::timeout(REPORT_ARRIVES, next.run(request)).await {
        Ok(response) => response,
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}

type Shared = State<Arc<RackServer>>;

/// A failure of ours: 500 with the reasons, which a person may read on the machine's console.
struct Trouble(RackError);

impl From<RackError> for Trouble {
    fn from(error: RackError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        let status = match self.0 {
            RackError::NoSecret => StatusCode::FORBIDDEN,
            RackError::UnknownCommit { .. } => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, in_one_line(&self.0) + "\n").into_response()
    }
}

/// Runs what blocks (repo, records) away from the threads that serve.
async fn blocking<R: Send + 'static>(
    server: &Arc<RackServer>,
    act: impl FnOnce(&RackServer) -> Result<R, RackError> + Send + 'static,
) -> Result<R, Trouble> {
    let server = server.clone();
    let ran = tokio::task::spawn_blocking(move || act(&server)).await;
    ran.unwrap_or_else(|join| Err(RackError::io("answering")(std::io::Error::other(join)))).map_err(Trouble)
}

#[derive(Debug, Deserialize)]
struct ScriptQuery {
    mac: Mac,
    #[serde(default)]
    uuid: Option<String>,
    #[serde(default)]
    serial: Option<String>,
}

async fn script(
    State(server): Shared,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Query(query): Query<ScriptQuery>,
) -> Result<Response, Trouble> {
    let text = blocking(&server, move |server| server.answer_boot(&query, peer.ip())).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain")], text).into_response())
}

/// What a stock identity would be taken for, is left out.
fn claim_of(mac: Mac, uuid: Option<&String>, serial: Option<&String>) -> Claim {
    let short = |text: Option<&String>| text.map(|text| printable(text, LONGEST_NAME));
    let (uuid, serial) = (short(uuid), short(serial));
    let (uuid, serial) = (uuid.as_ref(), serial.as_ref());
    let uuid = uuid.filter(|uuid| machine_uuid(uuid).is_some()).and_then(|uuid| normal_uuid(uuid));
    let serial =
        serial.filter(|serial| machine_serial(serial).is_some()).map(|serial| serial.trim().to_owned());
    Claim { mac, uuid, serial }
}

/// What netboot found out about a machine under the records' lock.
enum Netboot {
    Answer(BootAnswer),
    /// The packets came from another card than the request says.
    Liar(Mac),
    Rival(Vec<String>),
}

impl RackServer {
    fn answer_boot(&self, query: &ScriptQuery, peer: IpAddr) -> Result<String, RackError> {
        let claim = claim_of(query.mac, query.uuid.as_ref(), query.serial.as_ref());
        let mac = query.mac;
        let Some(host) = self.rack.find_host(mac, claim.uuid.as_deref(), claim.serial.as_deref()) else {
            let subject = Subject::Stranger(mac);
            self.records.change(
                (&subject, mac),
                now(),
                |()| false,
                |record| {
                    (record.uuid, record.serial) = (claim.uuid, claim.serial);
                },
            )?;
            let why = format!("{mac} is not in the rack file; not touched");
            self.tell.machine(mac, None, "unknown", &why);
            return Ok(ipxe::render_disk(&why));
        };
        let subject = Subject::Host(host.name.clone());
        let secret = new_secret()?;
        let sender = neighbours::card_of(peer);
        // Only a secret that is handed out must outlive the server.
        let is_handed_out = |found: &Netboot| matches!(found, Netboot::Answer(BootAnswer::Installer));
        let found = self.records.change((&subject, mac), now(), is_handed_out, |record| {
            if record.is_rival(host.reimage, &claim, None) {
                record.remember(claim);
                return Netboot::Rival(record.tell_claims());
            }
            record.host = Some(host.name.clone());
            (record.mac, record.uuid, record.serial) = (mac, claim.uuid, claim.serial);
            let answer = plan_boot(Some(host), Some(record));
            if answer == BootAnswer::Installer {
                if let Some(other) = sender.filter(|sender| *sender != mac) {
                    return Netboot::Liar(other);
                }
                record.pending = secret_digest(&secret);
            }
            Netboot::Answer(answer)
        });
        let disk = |step: &str, why: String| {
            self.tell.machine(mac, Some(&host.name), step, &why);
            Ok(ipxe::render_disk(&why))
        };
        // A full disk must not leave a machine without an answer.
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                return disk("failed", format!("{} is not imaged: {}", host.name, in_one_line(&error)));
            }
        };
        match found {
            Netboot::Rival(claims) => disk("refused", format!("{mac} is not touched: {}", claims.join("; "))),
            Netboot::Liar(other) => disk(
                "refused",
                format!(
                    "{mac} is not touched: the request came from the card {other}; does a router hide the machine?"
                ),
            ),
            Netboot::Answer(BootAnswer::LeaveUnknown) => {
                disk("unknown", format!("{mac} is not in the rack file; not touched"))
            }
            Netboot::Answer(BootAnswer::DiskInstalled) => {
                disk("disk", format!("{} is installed; boots from its disk", host.name))
            }
            Netboot::Answer(BootAnswer::DiskImaged) => {
                disk("disk", format!("{} is imaged; boots from its disk", host.name))
            }
            Netboot::Answer(BootAnswer::Installer) => match self.installer_script(host, mac, peer, &secret) {
                Ok((script, commit)) => {
                    let version = self.files.version(commit).unwrap_or_default();
                    let told = format!("starts the installer of release {version} ({})", commit.short());
                    self.tell.machine(mac, Some(&host.name), "netboot", &told);
                    let subject = Subject::Host(host.name.clone());
                    let note = |record: &mut MachineRecord| record.note("netboot", told, now());
                    // For people alone: the next change that must be stored takes it along.
                    self.records.change((&subject, mac), now(), |()| false, note)?;
                    Ok(script)
                }
                Err(error) => {
                    disk("failed", format!("no release to image {} with: {}", host.name, in_one_line(&error)))
                }
            },
        }
    }

    fn installer_script(
        &self,
        host: &RackHost,
        mac: Mac,
        peer: IpAddr,
        secret: &str,
    ) -> Result<(String, Commit), RackError> {
        let profile = &self.rack.profiles[&host.profile];
        let commit = self.files.resolve(profile)?;
        for name in ["vmlinuz", "initramfs.img"] {
            self.files.require(commit, name)?;
        }
        let network = &self.rack.network;
        // A host without an address of its own keeps the one that DHCP just gave it, while it is imaged.
        let lease = match peer {
            IpAddr::V4(address) => AddressWithPrefix { address, prefix: network.address.prefix },
            IpAddr::V6(_) => network.address,
        };
        let machine = kernel::Machine { mac, address: host.address.unwrap_or(lease), secret };
        let arguments = kernel::render_arguments(network, machine, &profile.kernel_arguments);
        Ok((ipxe::render_installer(&network.server_url(), &host.name, commit, &arguments), commit))
    }

    /// The record that a secret belongs to.
    fn subject_of(&self, secret: Option<&str>) -> Result<(Subject, String), RackError> {
        let digest = secret.map(secret_digest).ok_or(RackError::NoSecret)?;
        let subject = self.records.find_secret(&digest).ok_or(RackError::NoSecret)?;
        Ok((subject, digest))
    }

    fn answer_inventory(
        &self,
        mac: Mac,
        secret: Option<&str>,
        mut inventory: Inventory,
    ) -> Result<ImagingAnswer, RackError> {
        clean(&mut inventory);
        let (subject, digest) = self.subject_of(secret)?;
        let Subject::Host(name) = &subject else { return Err(RackError::NoSecret) };
        let Some(host) = self.rack.hosts.iter().find(|host| host.name == *name) else {
            return Ok(ImagingAnswer::Refuse { reasons: vec![format!("{name} is not in the rack file")] });
        };
        let profile = &self.rack.profiles[&host.profile];
        let commit = self.files.resolve(profile)?;
        let claim = claim_of(mac, inventory.uuid.as_ref(), inventory.serial.as_ref());
        let told = tell_inventory(&inventory);
        // Planned under the records' lock: two inventories of one machine cannot both get a first order.
        let answer = self.records.change(
            (&subject, mac),
            now(),
            |_| true,
            |record| {
                if record.is_rival(host.reimage, &claim, Some(&inventory.disks)) {
                    record.remember(claim);
                    return ImagingAnswer::Refuse { reasons: record.tell_claims() };
                }
                let situation =
                    Situation { rack: &self.rack, host, profile, mac, commit, record: Some(record) };
                let (answer, order) = plan_imaging(&situation, &inventory);
                match &answer {
                    ImagingAnswer::Image(_) => {
                        if record.order_of(host.reimage).is_none() {
                            record.claims.clear();
                        }
                        (record.order, record.secret, record.ordered_by) = (order, digest, Some(mac));
                        record.pending.clear();
                        record.refused.clear();
                    }
                    ImagingAnswer::BootDisk { .. } => {
                        if let Some((_, mark)) = installed_here(host, &inventory.disks) {
                            record.installed = record.installed.max(Some(mark.generation));
                            record.secret.clone_from(&mark.secret);
                        }
                        record.pending.clear();
                        record.refused.clear();
                    }
                    ImagingAnswer::Refuse { reasons } => record.refused.clone_from(reasons),
                }
                record.inventory = Some(inventory);
                answer
            },
        )?;
        self.tell.machine(mac, Some(name), "inventory", &told);
        let (step, told) = match &answer {
            ImagingAnswer::Image(plan) => {
                let wiped = if plan.wiped.is_empty() { "blank".to_owned() } else { plan.wiped.join(", ") };
                let release = plan.commit.short();
                ("order", format!("{}: release {release} to {} ({wiped})", plan.order, plan.disk.name))
            }
            ImagingAnswer::BootDisk { reason } => ("disk", reason.clone()),
            ImagingAnswer::Refuse { reasons } => ("refused", reasons.join("; ")),
        };
        self.tell.machine(mac, Some(name), step, &told);
        Ok(answer)
    }

    fn take_event(&self, mac: Mac, secret: Option<&str>, mut event: MachineEvent) -> Result<(), RackError> {
        event.step = printable(&event.step, LONGEST_NAME);
        event.message = printable(&event.message, LONGEST_MESSAGE);
        event.order = event.order.map(|order| printable(&order, 2 * LONGEST_NAME));
        let (subject, _) = self.subject_of(secret)?;
        let durable = event.progress.is_none();
        let told = event.clone();
        let name = self.records.change(
            (&subject, mac),
            now(),
            |_| durable,
            |record| {
                record.apply_event(event, now());
                record.host.clone()
            },
        )?;
        let subject = name.unwrap_or_else(|| mac.to_string());
        let (step, message, progress) = (told.step, told.message, told.progress);
        self.tell.tell(RackEvent { subject, step, message, progress });
        Ok(())
    }

    fn take_booted(&self, mac: Mac, secret: Option<&str>, report: BootedReport) -> Result<(), RackError> {
        let (subject, digest) = self.subject_of(secret)?;
        if !self.files.has(report.commit) {
            return Err(RackError::UnknownCommit { commit: report.commit });
        }
        let generation = match &subject {
            Subject::Host(name) => {
                self.rack.hosts.iter().find(|host| host.name == *name).map(|host| host.reimage)
            }
            Subject::Stranger(_) => None,
        };
        let told = format!(
            "release {} booted from the disk, {} images present{}",
            name_release(self.files.version(report.commit).as_deref(), report.commit),
            report.images.len(),
            if report.ready { ", all services run" } else { "" }
        );
        let known = self.records.change(
            (&subject, mac),
            now(),
            |known: &Option<_>| known.is_some(),
            |record| {
                // The secret of an installer that has not been answered yet is no host's.
                if record.secret != digest {
                    return None;
                }
                let news = record.booted.as_ref() != Some(&report);
                record.apply_booted(report, generation);
                if news {
                    record.note("booted", told.clone(), now());
                }
                Some((record.host.clone(), news))
            },
        )?;
        let (name, news) = known.ok_or(RackError::NoSecret)?;
        if news {
            self.tell.machine(mac, name.as_deref(), "booted", &told);
        }
        Ok(())
    }

    fn view(&self) -> RackView {
        RackView::new(&self.rack, &self.records.all(), |commit| self.files.version(commit))
    }
}

/// Longest name (serial number, model, step) that is taken from a machine, in characters.
const LONGEST_NAME: usize = 128;
/// Longest message.
const LONGEST_MESSAGE: usize = 4000;
/// Disks, paths of a disk, and findings on it, that are taken from a machine.
const MOST_THINGS: usize = 256;

/// Everything that a machine says goes through here once, at the edge: to terminals, logs, pages and the records alike.
fn clean(inventory: &mut Inventory) {
    let name = |text: &mut Option<String>| {
        if let Some(text) = text {
            *text = printable(text, LONGEST_NAME);
        }
    };
    name(&mut inventory.uuid);
    name(&mut inventory.serial);
    inventory.disks.truncate(MOST_THINGS);
    for disk in &mut inventory.disks {
        disk.name = printable(&disk.name, LONGEST_NAME);
        [&mut disk.model, &mut disk.serial, &mut disk.wwn, &mut disk.transport].into_iter().for_each(name);
        for list in [&mut disk.by_path, &mut disk.contents] {
            list.truncate(MOST_THINGS);
            list.iter_mut().for_each(|text| *text = printable(text, 2 * LONGEST_NAME));
        }
    }
}

/// An inventory in a line.
fn tell_inventory(inventory: &Inventory) -> String {
    let disks: Vec<String> =
        inventory.disks.iter().map(|disk| format!("{} {} GiB", disk.name, disk.size >> 30)).collect();
    let firmware = if inventory.uefi { "UEFI" } else { "BIOS" };
    let memory = inventory.memory >> 20;
    format!("{firmware}, {} CPUs, {memory} MiB, disks: {}", inventory.cpus, disks.join(", "))
}

/// 128 bits from the kernel.
fn new_secret() -> Result<String, RackError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| RackError::io("making a secret")(error.into()))?;
    Ok(hex::encode(bytes))
}

/// The secret that a request carries (RFC 6750, 2.1).
fn secret_of(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    value.strip_prefix("Bearer ").map(|secret| secret.trim().to_owned())
}

async fn inventory(
    State(server): Shared,
    Path(mac): Path<Mac>,
    headers: HeaderMap,
    Json(inventory): Json<Inventory>,
) -> Result<Json<ImagingAnswer>, Trouble> {
    let secret = secret_of(&headers);
    blocking(&server, move |server| server.answer_inventory(mac, secret.as_deref(), inventory))
        .await
        .map(Json)
}

async fn event(
    State(server): Shared,
    Path(mac): Path<Mac>,
    headers: HeaderMap,
    Json(event): Json<MachineEvent>,
) -> Result<StatusCode, Trouble> {
    let secret = secret_of(&headers);
    blocking(&server, move |server| server.take_event(mac, secret.as_deref(), event)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn booted(
    State(server): Shared,
    Path(mac): Path<Mac>,
    headers: HeaderMap,
    Json(report): Json<BootedReport>,
) -> Result<StatusCode, Trouble> {
    let secret = secret_of(&headers);
    blocking(&server, move |server| server.take_booted(mac, secret.as_deref(), report)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn machines(State(server): Shared) -> Json<RackView> {
    Json(server.view())
}

async fn page(State(server): Shared) -> Html<String> {
    Html(render_page(&server.view(), now()))
}

async fn boot_program(
    State(server): Shared,
    Path(name): Path<String>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    if name != UEFI_PROGRAM {
        return StatusCode::NOT_FOUND.into_response();
    }
    // UEFI HTTP boot looks at the type before it runs the file.
    let mut response = answer_file(&server.options.ipxe.join(UEFI_PROGRAM), &method, &headers).await;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/efi"));
    response
}

/// GET, HEAD and ranges, with the length: firmware asks for it first.
async fn release_file(
    State(server): Shared,
    Path((commit, name)): Path<(Commit, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Trouble> {
    let found = blocking(&server, move |server| server.files.require(commit, &name)).await?;
    Ok(match found {
        Some(path) => answer_file(&path, &method, &headers).await,
        None => StatusCode::NOT_FOUND.into_response(),
    })
}
