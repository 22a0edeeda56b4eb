//! What carries the bytes of a test's client or backend: TCP or a Unix socket, in the clear or under TLS.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use tokio_rustls::rustls::{ClientConnection, ServerConnection, StreamOwned};

/// One end of a connection.
pub enum Link {
    /// TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
    /// A client under TLS.
    TlsClient(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// A server under TLS.
    TlsServer(Box<StreamOwned<ServerConnection, TcpStream>>),
}

impl Link {
    /// The TCP connection, where one carries it.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::TlsClient(stream) => Some(&stream.sock),
            Self::TlsServer(stream) => Some(&stream.sock),
            Self::Unix(_) => None,
        }
    }

    /// How long a read waits.
    pub fn set_read_timeout(&self, timeout: Duration) -> io::Result<()> {
        match (self.tcp(), self) {
            (Some(stream), _) => stream.set_read_timeout(Some(timeout)),
            (None, Self::Unix(stream)) => stream.set_read_timeout(Some(timeout)),
            (None, _) => unreachable!("every other kind has a TCP connection"),
        }
    }

    /// Ends the sending half.
    pub fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => return stream.shutdown(Shutdown::Write),
            Self::TlsClient(stream) => stream.conn.send_close_notify(),
            Self::TlsServer(stream) => stream.conn.send_close_notify(),
            Self::Tcp(_) => {}
        }
        self.flush()?;
        self.tcp().expect("it is no Unix socket").shutdown(Shutdown::Write)
    }

    /// The own address; that of a Unix socket is none.
    pub fn local_addr(&self) -> SocketAddr {
        let stream = self.tcp().expect("a Unix socket has no address");
        stream.local_addr().expect("an open socket")
    }
}

impl Read for Link {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
            Self::TlsClient(stream) => stream.read(buf),
            Self::TlsServer(stream) => stream.read(buf),
        }
    }
}

impl Write for Link {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
            Self::TlsClient(stream) => stream.write(buf),
            Self::TlsServer(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.flush(),
            Self::Unix(stream) => stream.flush(),
            Self::TlsClient(stream) => stream.flush(),
            Self::TlsServer(stream) => stream.flush(),
        }
    }
}
