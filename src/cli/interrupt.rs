//! SIGINT and SIGTERM, for verbs that have something to clean up.

/// Calls `act` at every SIGINT and SIGTERM, on a thread of its own, for as long as the program runs.
pub(super) fn on_stop(act: impl Fn() + Send + 'static) {
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                return;
            };
            loop {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                act();
            }
        });
    });
}
