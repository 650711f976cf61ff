//! A TCP relay that can stop to pass anything on, as a network that swallows packets.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Listens on a port of its own and passes on to another.
pub(crate) struct Wire {
    port: u16,
    cut: watch::Sender<bool>,
}

impl Wire {
    /// A wire to 127.0.0.1:`target`.
    pub(crate) async fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(connect(near, target, is_cut.clone()));
            }
        });
        Self { port, cut }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on, until it is mended, connections stand and nothing comes through.
    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub(crate) fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn connect(near: TcpStream, target: u16, is_cut: watch::Receiver<bool>) {
    if !opens(&mut is_cut.clone()).await {
        return;
    }
    let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = pass(near_in, far_out, is_cut.clone()) => {}
        () = pass(far_in, near_out, is_cut) => {}
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut is_cut: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        if !opens(&mut is_cut).await || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

/// Waits until the wire is whole; false when it will never be.
async fn opens(is_cut: &mut watch::Receiver<bool>) -> bool {
    is_cut.wait_for(|&cut| !cut).await.is_ok()
}
