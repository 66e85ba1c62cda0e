//! `http-policies FOLDER [ADDRESS]`: serves on ADDRESS (127.0.0.1:8080), with the policies of FOLDER, which is looked at twice
//! a second. `http-policies --print-header` writes the struct that they get.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use http_policies::policies::{HttpRequest, Policies};
use http_policies::service::serve;
use skep::host::c_declaration;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: http-policies FOLDER [ADDRESS] | --print-header")?;
    if folder == "--print-header" {
        print!("{}", c_declaration::<HttpRequest>());
        return Ok(());
    }
    let mut policies = Policies::new(Path::new(&folder))?;
    let listener = TcpListener::bind(args.next().as_deref().unwrap_or("127.0.0.1:8080")).await?;
    eprintln!("serving on http://{}", listener.local_addr()?);
    let hook = policies.hook();
    // Loading verifies and compiles: not on a thread that serves.
    std::thread::spawn(move || {
        loop {
            policies.refresh().iter().for_each(|line| eprintln!("{line}"));
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    Ok(serve(listener, hook).await?)
}
