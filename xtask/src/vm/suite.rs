// SPDX-License-Identifier: Apache-2.0
//! What is tried on the older kernels: of each thing that a kernel does for zt, the test that says most about it. A guest without
//! the help of hardware is slow, so that not every test is.

/// Tests of one binary.
pub(super) struct Selection {
    /// Its name.
    pub(super) binary: &'static str,
    /// Its tests, by their full names.
    pub(super) tests: &'static [&'static str],
}

const fn of(binary: &'static str, tests: &'static [&'static str]) -> Selection {
    Selection { binary, tests }
}

/// In the order in which they run. The first says which program does not load, where one does not.
pub(super) const SUITE: [Selection; 20] = [
    of("instructions", &["the_verifier_takes_every_program"]),
    of(
        "decide",
        &["allowed_and_refused_over_both_families_and_protocols"],
    ),
    of("differential", &["kernel_api_and_documents_agree"]),
    of(
        "birth",
        &["whoever_was_never_named_is_refused_from_birth_where_that_is_configured"],
    ),
    of("change", &["however_a_file_is_changed_the_policy_follows"]),
    of("revoke", &["a_revoked_connection_dies_at_both_ends"]),
    of(
        "rollout",
        &[
            "policy_and_modes_change_in_one_step",
            "stages_come_and_go_with_the_traffic_that_they_are_about",
        ],
    ),
    of("udp", &["a_strangers_datagrams_are_dropped_and_a_clients_arrive"]),
    of("older", &["sockets_older_than_the_agent_are_judged_and_owned"]),
    of(
        "packet_guard",
        &[
            "what_is_revoked_while_nobody_destroys_it_carries_nothing_more",
            "what_is_older_than_the_agent_is_judged_by_its_sockets_and_by_address",
        ],
    ),
    of(
        "packet_sockets",
        &["where_the_kernel_asks_about_packet_sockets_they_are_decided_on"],
    ),
    of("handover", &["a_second_agent_has_the_first_one_hand_over"]),
    of(
        "handshake",
        &[
            "who_shares_a_loopback_is_told_apart_in_both_directions",
            "older_listeners_prove_who_they_are",
        ],
    ),
    of("inbound", &["not_one_byte_of_a_stranger_arrives"]),
    of("handshake_keys", &["the_next_agent_goes_on_with_the_key"]),
    of("handshake_course", &["a_syn_cookie_asks_once_more"]),
    of("handshake_attacks", &["what_is_repeated_elsewhere_names_nobody"]),
    of(
        "handshake_nodes",
        &[
            "both_ends_are_proven_and_both_record",
            "who_answers_from_behind_a_virtual_address_says_on_which_node_he_is",
        ],
    ),
    of("require_proof", &["who_proves_gets_through_and_who_asks_is_told"]),
    of("tools", &["connectivity::everything_that_it_tries_comes_out"]),
];
