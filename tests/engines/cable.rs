//! A way to a NATS server that can be cut, that can be made to carry everything but what the server pushes, or to hold what
//! the server says and deliver it at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The way; it ends with the value.
pub struct Cable {
    pub port: u16,
    cuts: watch::Sender<u64>,
    deaf: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
    pub connections: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

impl Cable {
    /// A way to the server at a port.
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("it listens").port();
        let (cuts, deaf, held) = (watch::Sender::new(0), Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let connections = Arc::default();
        let accepting = tokio::spawn({
            let (cuts, deaf, held) = (cuts.clone(), deaf.clone(), held.clone());
            let connections = Arc::clone(&connections);
            async move {
                while let Ok((client, _)) = listener.accept().await {
                    let mut cut = cuts.subscribe();
                    let (deaf, held) = (deaf.clone(), held.clone());
                    let number: &AtomicUsize = &connections;
                    number.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(async move {
                        tokio::select! {
                            () = carry(client, server, &deaf, &held) => {}
                            _ = cut.changed() => {}
                        }
                    });
                }
            }
        });
        Self { port, cuts, deaf, held, connections, accepting }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Ends all connections; new ones are made as before.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Carries nothing any more of what was stored and is pushed; or again.
    pub fn set_deaf(&self, deaf: bool) {
        self.deaf.store(deaf, Ordering::SeqCst);
    }
}

impl Cable {
    /// Holds what the server says; or delivers it, together with what it says next.
    pub fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn carry(client: TcpStream, server: u16, deaf: &AtomicBool, held: &AtomicBool) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let up = async {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    };
    let down = async {
        let mut from_server = BufReader::new(from_server);
        let (mut part, mut waiting) = (Vec::new(), Vec::new());
        loop {
            part.clear();
            if from_server.read_until(b'\n', &mut part).await.unwrap_or(0) == 0 {
                return;
            }
            let line = String::from_utf8_lossy(&part).into_owned();
            let mut words = line.split_whitespace();
            if let Some("MSG" | "HMSG") = words.next() {
                let length: usize = words.last().and_then(|length| length.parse().ok()).expect("a length");
                let head = part.len();
                part.resize(head + length + 2, 0);
                if from_server.read_exact(&mut part[head..]).await.is_err() {
                    return;
                }
                if deaf.load(Ordering::SeqCst) && line.contains(" sluicegate.p.") {
                    continue;
                }
            }
            waiting.extend_from_slice(&part);
            if held.load(Ordering::SeqCst) {
                continue;
            }
            if to_client.write_all(&waiting).await.is_err() {
                return;
            }
            waiting.clear();
        }
    };
    tokio::select! {
        () = up => {}
        () = down => {}
    }
}
