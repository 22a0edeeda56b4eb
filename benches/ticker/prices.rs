//! The messages of examples/ticker/feed.mjs: arrays of changes, `["S042",115.54,1817,1795489098605]` each.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::rc::Rc;

use serde::Deserialize;
use sluicegate::ws::deflate::Inflater;

use super::Result;

/// As many symbols as the feed has.
pub const SYMBOLS: usize = 500;

/// Messages whose meaning is kept: a gateway sends the same bytes to all clients, so that most have been read already.
const KEPT: usize = 16;

/// Symbol, price, number of the change, time of publication in ms.
#[derive(Deserialize)]
struct Change(String, f64, u32, u64);

/// What a client has of a symbol: nothing has the number 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Price {
    pub number: u32,
    pub cents: u32,
}

#[derive(Clone, Copy)]
pub struct Update {
    pub symbol: usize,
    pub price: Price,
    pub at_ms: u64,
}

/// What the feed says of itself when it has ended.
#[derive(Deserialize)]
struct Ended {
    published: u64,
    requests: u64,
    again: u64,
    last: Vec<Change>,
}

/// The same with the prices by symbol.
pub struct Last {
    pub published: u64,
    pub requests: u64,
    /// How many requests were a repetition.
    pub again: u64,
    pub prices: Vec<Price>,
}

/// Reads messages.
#[derive(Default)]
pub struct Reader {
    symbols: HashMap<String, usize>,
    kept: VecDeque<(Vec<u8>, Rc<[Update]>)>,
}

impl Reader {
    /// The changes of a message, as it came.
    pub fn read(&mut self, message: &[u8], compressed: bool) -> Result<Rc<[Update]>> {
        if let Some((_, updates)) = self.kept.iter().find(|(kept, _)| kept == message) {
            return Ok(Rc::clone(updates));
        }
        let changes: Vec<Change> = match compressed {
            true => serde_json::from_slice(&inflated(message)?)?,
            false => serde_json::from_slice(message)?,
        };
        let updates = changes.iter().map(|change| self.update(change)).collect::<Result<Rc<[Update]>>>()?;
        self.kept.truncate(KEPT - 1);
        self.kept.push_front((message.to_vec(), Rc::clone(&updates)));
        Ok(updates)
    }

    /// What the feed left in a file.
    pub fn last(&mut self, file: &Path) -> Result<Last> {
        let Ended { published, requests, again, last } = serde_json::from_slice(&std::fs::read(file)?)?;
        let mut prices = vec![Price::default(); SYMBOLS];
        for change in &last {
            let Update { symbol, price, .. } = self.update(change)?;
            prices[symbol] = price;
        }
        Ok(Last { published, requests, again, prices })
    }

    fn update(&mut self, Change(name, price, number, at_ms): &Change) -> Result<Update> {
        let next = self.symbols.len();
        let symbol = match self.symbols.get(name) {
            Some(symbol) => *symbol,
            None if next < SYMBOLS => *self.symbols.entry(name.clone()).or_insert(next),
            None => return Err(format!("the feed has no symbol {name:?}").into()),
        };
        let price = Price { number: *number, cents: (price * 100.0).round() as u32 };
        Ok(Update { symbol, price, at_ms: *at_ms })
    }
}

fn inflated(message: &[u8]) -> Result<Vec<u8>> {
    let (mut plain, mut inflater) = (Vec::new(), Inflater::new());
    let mut sink = |piece: &[u8]| {
        plain.extend_from_slice(piece);
        Ok(())
    };
    inflater.feed(message, &mut sink)?;
    inflater.finish(&mut sink)?;
    Ok(plain)
}
