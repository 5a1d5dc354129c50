//! Samples 100 guests on one thread: a task for each, and a deadline for every call.
//!
//! `cargo run --example many_guests --features tokio [URI...]` reads the guests with these addresses; without any, it
//! starts 100 stand-ins for an agent.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use scx_vsock::client::AsyncSchedStatsClient;
use scx_vsock::{Endpoint, SchedStatsError};
use serde_json::Value;
use tokio::task::JoinSet;

/// How long a guest may take to answer.
const DEADLINE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn Error>> {
    let addresses: Vec<String> = std::env::args().skip(1).collect();
    let folder = std::env::temp_dir().join(format!("many_guests-{}", std::process::id()));
    let guests = if addresses.is_empty() { stand_ins(&folder)? } else { addresses };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answered = runtime.block_on(sample_all(guests));
    let _not_there = fs::remove_dir_all(&folder);
    println!("{} guests answered", answered?);
    Ok(())
}

/// Asks all guests at once. A guest that does not answer costs its own deadline and nobody else's.
async fn sample_all(guests: Vec<String>) -> Result<usize, Box<dyn Error>> {
    let mut tasks = JoinSet::new();
    for guest in guests {
        let client = AsyncSchedStatsClient::builder(guest.parse::<Endpoint>()?).deadline(DEADLINE).build();
        tasks.spawn(async move { (guest, client.stats(&[]).await) });
    }
    let mut answered = 0;
    while let Some(task) = tasks.join_next().await {
        let (guest, stats): (String, Result<Value, SchedStatsError>) = task?;
        match stats {
            Ok(_) => answered += 1,
            Err(reason) => eprintln!("{guest}: {reason}"),
        }
    }
    Ok(answered)
}

/// Starts 100 stand-ins for an agent, and returns their addresses.
fn stand_ins(folder: &Path) -> Result<Vec<String>, Box<dyn Error>> {
    fs::create_dir(folder)?;
    let paths: Vec<PathBuf> = (0..100).map(|number| folder.join(number.to_string())).collect();
    for path in &paths {
        let listener = UnixListener::bind(path)?;
        thread::spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                let _the_client_has_gone = answer(&stream);
            }
        });
    }
    Ok(paths.iter().map(|path| format!("unix:{}", path.display())).collect())
}

/// Says hello, and answers each request with the same stats.
fn answer(mut stream: &UnixStream) -> std::io::Result<()> {
    let hello = r#"{"hello":{"protocol":1,"min_protocol":1,"agent":"0.1.0","boot_id":"","max_request_bytes":262144,"max_response_bytes":262144}}"#;
    writeln!(stream, "{hello}")?;
    for request in BufReader::new(stream).lines() {
        let _request = request?;
        writeln!(stream, r#"{{"stats":{{"errno":0,"args":{{"resp":{{"nr_running":1}}}}}}}}"#)?;
    }
    Ok(())
}
