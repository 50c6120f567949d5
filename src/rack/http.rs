//! The rack server's HTTP: boot scripts and files, the release repo, and the machine API of [`crate::model::imaging`].
//!
//! There is no password: whoever is on the rack's network may ask. What can be done by asking is bounded by the rack file.

use std::net::{IpAddr, SocketAddr};
use std::path::Path as FilePath;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Path, Query, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tower_http::services::{ServeDir, ServeFile};

use super::boot_files::ReleaseFiles;
use super::records::Records;
use super::view::{RackView, render_page};
use super::{RackError, RackEvent, RackOptions, Teller, now};
use crate::imaging::plan::{BootAnswer, Situation, plan_boot, plan_imaging};
use crate::model::Commit;
use crate::model::causes::in_one_line;
use crate::model::imaging::{BootedReport, ImagingAnswer, Inventory, MachineEvent};
use crate::model::machine::MachineRecord;
use crate::model::rack::{AddressWithPrefix, Mac, Rack, RackHost};
use crate::rack::netboot::dnsmasq::UEFI_PROGRAM;
use crate::rack::netboot::{ipxe, kernel};

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
pub(super) fn router(server: Arc<RackServer>) -> Router {
    let repo = ServeDir::new(&server.options.repo).append_index_html_on_directories(false);
    Router::new()
        .route("/", get(page))
        .route("/v1/machines", get(machines))
        .route("/v1/machines/{mac}/inventory", post(inventory))
        .route("/v1/machines/{mac}/events", post(event))
        .route("/v1/machines/{mac}/booted", post(booted))
        .route("/boot/ipxe", get(script))
        .route("/boot/{program}", get(boot_program))
        .route("/boot/{commit}/{name}", get(release_file))
        .nest_service("/repo", repo)
        .with_state(server)
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
        (StatusCode::INTERNAL_SERVER_ERROR, in_one_line(&self.0) + "\n").into_response()
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

impl RackServer {
    /// The host that a machine is: as the rack file says, or as it was recognised when it booted.
    fn host_of(&self, mac: Mac, record: Option<&MachineRecord>) -> Option<&RackHost> {
        let (uuid, serial) =
            record.map_or((None, None), |record| (record.uuid.as_deref(), record.serial.as_deref()));
        self.rack.find_host(mac, uuid, serial)
    }

    fn answer_boot(&self, query: &ScriptQuery, peer: IpAddr) -> Result<String, RackError> {
        // Boards without a UUID of their own give all zeros or all ones: it would be many machines' name.
        let is_name = |text: &String| text.chars().any(|c| !" -0fF".contains(c));
        let given = |text: &Option<String>| text.clone().filter(is_name);
        let (mac, uuid, serial) = (query.mac, given(&query.uuid), given(&query.serial));
        let host = self.rack.find_host(mac, uuid.as_deref(), serial.as_deref());
        let name = host.map(|host| host.name.clone());
        let record = self.records.change(mac, now(), true, |record| {
            record.host.clone_from(&name);
            record.uuid = uuid;
            record.serial = serial;
            record.clone()
        })?;
        let disk = |step: &str, why: String| {
            self.tell.machine(mac, name.as_deref(), step, &why);
            Ok(ipxe::render_disk(&why))
        };
        let Some(host) = host else {
            return disk("unknown", format!("{mac} is not in the rack file; not touched"));
        };
        match plan_boot(Some(host), Some(&record)) {
            BootAnswer::LeaveUnknown => {
                disk("unknown", format!("{mac} is not in the rack file; not touched"))
            }
            BootAnswer::DiskInstalled => {
                disk("disk", format!("{} is installed; boots from its disk", host.name))
            }
            BootAnswer::DiskImaged => disk("disk", format!("{} is imaged; boots from its disk", host.name)),
            BootAnswer::Installer => match self.installer_script(host, mac, peer) {
                Ok((script, commit)) => {
                    let version = self.files.version(commit).unwrap_or_default();
                    let told = format!("starts the installer of release {version} ({})", commit.short());
                    self.tell.machine(mac, Some(&host.name), "netboot", &told);
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
        let arguments =
            kernel::render_arguments(network, mac, host.address.unwrap_or(lease), &profile.kernel_arguments);
        Ok((ipxe::render_installer(&network.server_url(), &host.name, commit, &arguments), commit))
    }

    fn answer_inventory(&self, mac: Mac, inventory: Inventory) -> Result<ImagingAnswer, RackError> {
        let before = self.records.get(mac);
        let host = self
            .host_of(mac, before.as_ref())
            .or_else(|| self.rack.find_host(mac, inventory.uuid.as_deref(), inventory.serial.as_deref()));
        let Some(host) = host else {
            self.records.change(mac, now(), true, |record| record.inventory = Some(inventory))?;
            self.tell.machine(
                mac,
                None,
                "unknown",
                "sent an inventory, but is not in the rack file; not touched",
            );
            return Ok(ImagingAnswer::Refuse { reasons: vec![format!("{mac} is not in the rack file")] });
        };
        let profile = &self.rack.profiles[&host.profile];
        let commit = self.files.resolve(profile)?;
        // Planned under the records' lock: two inventories of one machine cannot both get a first order.
        let (answer, told) = self.records.change(mac, now(), true, |record| {
            let situation = Situation { rack: &self.rack, host, profile, mac, commit, record: Some(record) };
            let (answer, order) = plan_imaging(&situation, &inventory);
            let told = tell_inventory(&inventory);
            record.host = Some(host.name.clone());
            record.inventory = Some(inventory);
            match &answer {
                ImagingAnswer::Image(_) => {
                    record.order = order;
                    record.refused.clear();
                }
                ImagingAnswer::Refuse { reasons } => record.refused.clone_from(reasons),
            }
            (answer, told)
        })?;
        self.tell.machine(mac, Some(&host.name), "inventory", &told);
        let (step, told) = match &answer {
            ImagingAnswer::Image(plan) => {
                let wiped = if plan.wiped.is_empty() { "blank".to_owned() } else { plan.wiped.join(", ") };
                let release = plan.commit.short();
                ("order", format!("{}: release {release} to {} ({wiped})", plan.order, plan.disk.name))
            }
            ImagingAnswer::Refuse { reasons } => ("refused", reasons.join("; ")),
        };
        self.tell.machine(mac, Some(&host.name), step, &told);
        Ok(answer)
    }

    fn take_event(&self, mac: Mac, event: MachineEvent) -> Result<(), RackError> {
        let durable = event.progress.is_none();
        let told = event.clone();
        let name = self.records.change(mac, now(), durable, |record| {
            record.apply_event(event, now());
            record.host.clone()
        })?;
        let subject = name.unwrap_or_else(|| mac.to_string());
        let (step, message, progress) = (told.step, told.message, told.progress);
        self.tell.tell(RackEvent { subject, step, message, progress });
        Ok(())
    }

    fn take_booted(&self, mac: Mac, report: BootedReport) -> Result<(), RackError> {
        let generation = self.host_of(mac, self.records.get(mac).as_ref()).map(|host| host.reimage);
        let told = format!(
            "release {} booted from the disk, {} images present{}",
            report.commit.short(),
            report.images.len(),
            if report.ready { ", all services run" } else { "" }
        );
        let (name, news) = self.records.change(mac, now(), true, |record| {
            let news = record.booted.as_ref() != Some(&report);
            record.apply_booted(report, generation);
            (record.host.clone(), news)
        })?;
        if news {
            self.tell.machine(mac, name.as_deref(), "booted", &told);
        }
        Ok(())
    }

    fn view(&self) -> RackView {
        RackView::new(&self.rack, &self.records.all())
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

async fn inventory(
    State(server): Shared,
    Path(mac): Path<Mac>,
    Json(inventory): Json<Inventory>,
) -> Result<Json<ImagingAnswer>, Trouble> {
    blocking(&server, move |server| server.answer_inventory(mac, inventory)).await.map(Json)
}

async fn event(
    State(server): Shared,
    Path(mac): Path<Mac>,
    Json(event): Json<MachineEvent>,
) -> Result<StatusCode, Trouble> {
    blocking(&server, move |server| server.take_event(mac, event)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn booted(
    State(server): Shared,
    Path(mac): Path<Mac>,
    Json(report): Json<BootedReport>,
) -> Result<StatusCode, Trouble> {
    blocking(&server, move |server| server.take_booted(mac, report)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn machines(State(server): Shared) -> Json<RackView> {
    Json(server.view())
}

async fn page(State(server): Shared) -> Html<String> {
    Html(render_page(&server.view(), now()))
}

async fn boot_program(State(server): Shared, Path(name): Path<String>, request: Request) -> Response {
    if name != UEFI_PROGRAM {
        return StatusCode::NOT_FOUND.into_response();
    }
    // UEFI HTTP boot looks at the type before it runs the file.
    let mut response = serve_file(&server.options.ipxe.join(UEFI_PROGRAM), request).await;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/efi"));
    response
}

async fn release_file(
    State(server): Shared,
    Path((commit, name)): Path<(Commit, String)>,
    request: Request,
) -> Result<Response, Trouble> {
    let found = blocking(&server, move |server| server.files.require(commit, &name)).await?;
    Ok(match found {
        Some(path) => serve_file(&path, request).await,
        None => StatusCode::NOT_FOUND.into_response(),
    })
}

/// GET, HEAD and ranges, with the length: firmware asks for it first.
async fn serve_file(path: &FilePath, request: Request) -> Response {
    match ServeFile::new(path).try_call(request).await {
        Ok(response) => response.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
