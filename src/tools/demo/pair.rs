//! Two gateways as processes of their own, to be killed: with one Redis where there is a `redis-server`, or each with its
//! own memory.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

/// How long a process may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(25);

/// The processes. They end with it.
pub struct Pair {
    gateways: [Gateway; 2],
    redis: Option<Mutex<Child>>,
    folder: PathBuf,
}

/// One of the gateways, which keeps its ports while it is down.
struct Gateway {
    file: PathBuf,
    public: SocketAddr,
    publish: SocketAddr,
    child: Mutex<Option<Child>>,
}

impl Pair {
    /// Starts everything. `backend` is where the gateways find the rooms, and `page` the origin whose page may connect.
    ///
    /// # Errors
    /// A process that does not start, or a file that cannot be written.
    pub async fn start(backend: SocketAddr, page: &str) -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("sluicegate-demo-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let redis = start_redis(&folder).await?;
        let (redis, engine) = match redis {
            Some((child, address)) => {
                (Some(Mutex::new(child)), format!("{{ redis: {{ url: \"redis://{address}\" }} }}"))
            }
            None => (None, "memory".to_owned()),
        };
        let gateway = |name: &str| -> io::Result<Gateway> {
            let (public, publish) = (free_port()?, free_port()?);
            let file = folder.join(format!("{name}.yaml"));
            std::fs::write(&file, configuration(public, publish, backend, &engine, page))?;
            Ok(Gateway { file, public, publish, child: Mutex::default() })
        };
        let pair = Self { gateways: [gateway("a")?, gateway("b")?], redis, folder };
        for at in 0..pair.gateways.len() {
            pair.run(at).await?;
        }
        Ok(pair)
    }

    /// Whether what is published to one gateway is there for both.
    pub fn shares_a_log(&self) -> bool {
        self.redis.is_some()
    }

    /// How many gateways there are.
    pub fn len(&self) -> usize {
        self.gateways.len()
    }

    /// Where a gateway serves clients.
    pub fn public(&self, at: usize) -> Option<SocketAddr> {
        self.gateways.get(at).map(|gateway| gateway.public)
    }

    /// Where a gateway takes publications; `None` while it is down.
    pub async fn publish(&self, at: usize) -> Option<SocketAddr> {
        let gateway = self.gateways.get(at)?;
        let mut child = gateway.child.lock().await;
        let runs = child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        runs.then_some(gateway.publish)
    }

    /// Ends a gateway as a crash would.
    pub async fn kill(&self, at: usize) {
        let Some(gateway) = self.gateways.get(at) else { return };
        if let Some(mut child) = gateway.child.lock().await.take() {
            // It is gone already, or goes now.
            let _ = child.kill().await;
        }
    }

    /// Starts a gateway, and waits until it takes publications.
    ///
    /// # Errors
    /// It does not.
    pub async fn run(&self, at: usize) -> io::Result<()> {
        let Some(gateway) = self.gateways.get(at) else { return Ok(()) };
        let mut child = gateway.child.lock().await;
        if child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            return Ok(());
        }
        let mut started =
            quiet(Command::new(std::env::current_exe()?).arg("run").arg("-c").arg(&gateway.file)).spawn()?;
        for address in [gateway.public, gateway.publish] {
            listens(address, &mut started).await?;
        }
        *child = Some(started);
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // The children are killed as they are dropped; what is left is a folder in the system's own for such.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Redis on a free port and in memory only; `None` where there is no such program.
async fn start_redis(folder: &Path) -> io::Result<Option<(Child, SocketAddr)>> {
    let address = free_port()?;
    let port = address.port().to_string();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]).arg(folder);
    match quiet(&mut command).spawn() {
        Ok(mut child) => {
            listens(address, &mut child).await?;
            Ok(Some((child, address)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true)
}

async fn listens(address: SocketAddr, child: &mut Child) -> io::Result<()> {
    let connects = async {
        loop {
            if TcpStream::connect(address).await.is_ok() {
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("a process of the demo ended: {status}")));
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(START_TIMEOUT, connects).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn configuration(public: SocketAddr, publish: SocketAddr, backend: SocketAddr, engine: &str, page: &str) -> String {
    let by_name = page.replace("127.0.0.1", "localhost");
    format!(
        "\
version: 1
listeners: [{{ name: public, bind: \"{public}\", hosts: [\"127.0.0.1\"] }}]
admin: {{ bind: \"127.0.0.1:0\" }}
upstreams: [{{ name: rooms, endpoints: [\"{backend}\"] }}]
backplane: {{ engine: {engine}, publish: {{ bind: \"{publish}\" }} }}
rules:
  - name: rooms
    match: {{ path_prefix: /room/ }}
    upstream: rooms
    backplane: grip
    origin: {{ allow: [\"{page}\", \"{by_name}\"] }}
    handshake: {{ per_ip: off }}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::demo::load;

    #[test]
    fn the_configurations_are_sound() {
        let address = "127.0.0.1:1".parse().unwrap();
        for engine in ["memory", "{ redis: { url: \"redis://127.0.0.1:6379\" } }"] {
            load(&configuration(address, address, address, engine, "http://127.0.0.1:8080")).unwrap_err();
            let publish = "127.0.0.1:2".parse().unwrap();
            load(&configuration(address, publish, address, engine, "http://127.0.0.1:8080")).unwrap();
        }
    }
}
