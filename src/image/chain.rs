//! Chain ids: how container engines name a layer together with everything below it.

use crate::model::Digest;

/// The chain id of each layer, lowest first (OCI image specification, `config.md`, "Layer ChainID").
pub fn chain_ids(diff_ids: impl IntoIterator<Item = Digest>) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::new();
    for diff_id in diff_ids {
        let id = match chain.last() {
            None => diff_id,
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(id);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_layer_names_what_is_below() {
        // printf 'sha256:%064d sha256:%064d' 1 2 | sha256sum, and on from there.
        let layers = [1, 2, 3].map(|n| format!("sha256:{n:064}").parse().unwrap());
        let chain: Vec<String> = chain_ids(layers).iter().map(Digest::hex).collect();
        assert_eq!(chain[0], format!("{:064}", 1));
        assert_eq!(chain[1], "e0213565073dd272477933ef550455db21856966e444074f1492aef0939305ac");
        assert_eq!(chain[2], "af4149e65a6923bb39782a876ce40a7c3b08fc85ec732e9efcc661d9399016d0");
    }
}
