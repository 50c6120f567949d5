//! What needs what, as one graph.

use std::collections::{BTreeMap, BTreeSet};

/// Circles of `edges`, each from its least name, as `a → b → a`.
pub fn circles(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<Vec<String>> {
    let mut found: BTreeSet<Vec<String>> = BTreeSet::new();
    for start in edges.keys() {
        if let Some(path) = shortest_way_back(edges, start)
            && path.iter().min() == Some(start)
        {
            found.insert(path);
        }
    }
    found.into_iter().collect()
}

/// The shortest path from `start` to itself, without its end.
fn shortest_way_back(edges: &BTreeMap<String, BTreeSet<String>>, start: &str) -> Option<Vec<String>> {
    let mut paths = vec![vec![start.to_owned()]];
    let mut seen = BTreeSet::new();
    while !paths.is_empty() {
        let mut longer = Vec::new();
        for path in paths {
            for next in path.last().and_then(|last| edges.get(last)).into_iter().flatten() {
                if next == start {
                    return Some(path);
                }
                if seen.insert(next.clone()) {
                    let mut path = path.clone();
                    path.push(next.clone());
                    longer.push(path);
                }
            }
        }
        paths = longer;
    }
    None
}

/// The names in an order in which none comes before what it needs; those in circles come last.
pub fn order(names: &[String], edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let (mut done, mut left): (Vec<String>, Vec<String>) = (Vec::new(), names.to_vec());
    loop {
        let free = |name: &String| {
            edges.get(name).is_none_or(|needs| !needs.iter().any(|need| need != name && left.contains(need)))
        };
        let Some(position) = left.iter().position(free) else { break };
        done.push(left.remove(position));
    }
    done.extend(left);
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn circles_are_named_once_and_order_follows_needs() {
        let edge =
            |from: &str, to: &[&str]| (from.to_owned(), to.iter().map(|to| (*to).to_owned()).collect());
        let edges =
            BTreeMap::from([edge("a", &["b"]), edge("b", &["c"]), edge("c", &["a", "d"]), edge("d", &[])]);
        assert_eq!(circles(&edges), [["a", "b", "c"]]);
        let edges = BTreeMap::from([edge("a", &["b"]), edge("b", &["c"])]);
        assert!(circles(&edges).is_empty());
        let names = ["a", "b", "c"].map(str::to_owned);
        assert_eq!(order(&names, &edges), ["c", "b", "a"]);
    }
}
