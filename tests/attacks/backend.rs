//! A backend that checks nothing: it plays a script on each connection, and keeps what came.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use crate::wire::{Script, Wire};

/// A backend in this process. It lives until it is dropped.
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    serving: Arc<Mutex<Serving>>,
}

#[derive(Default)]
struct Serving {
    scripts: Vec<(&'static str, Script)>,
    connections: Vec<Arc<Wire>>,
    ended: bool,
}

impl Backend {
    /// Listens.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it listens");
        let serving = Arc::<Mutex<Serving>>::default();
        thread::spawn({
            let serving = serving.clone();
            move || accept(&listener, &serving)
        });
        Self { address, serving }
    }

    /// Serves from now on with these scripts, by the beginning of the target of a connection's first request, and
    /// forgets the connections so far.
    pub fn serve(&self, scripts: &[(&'static str, Script)]) {
        let mut serving = self.serving.lock();
        serving.scripts = scripts.to_vec();
        for wire in serving.connections.drain(..) {
            wire.close();
        }
    }

    /// Its connections since.
    pub fn connections(&self) -> Vec<Arc<Wire>> {
        self.serving.lock().connections.clone()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.serve(&[]);
        self.serving.lock().ended = true;
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, serving: &Mutex<Serving>) {
    for stream in listener.incoming() {
        // A peer may be gone before it is accepted.
        let Ok(stream) = stream else { continue };
        let mut serving = serving.lock();
        if serving.ended {
            return;
        }
        let wire = Arc::new(Wire::over(stream));
        serving.connections.push(wire.clone());
        let scripts = serving.scripts.clone();
        thread::spawn(move || serve(&wire, &scripts));
    }
}

/// Plays the script that fits a connection's first request.
fn serve(wire: &Wire, scripts: &[(&'static str, Script)]) {
    let head = wire.first_head();
    let target = head.as_ref().map_or("", |head| head.second_word());
    if let Some((_, script)) = scripts.iter().find(|(path, _)| target.starts_with(path)) {
        wire.play(script);
    }
}
