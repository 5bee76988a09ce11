(** The constants of the running code, as exact numbers: written by proofs/coq_constants.py, not by hand.
    A golden number a + b phi is the pair (a, b). *)

Require Import ZArith QArith.

Definition alpha_phi : Q * Q := (-3 # 2, 1 # 1).  (* core.formulas.anchors.ALPHA_PHI *)
Definition furthest : Z := 80.  (* core.formulas.anchors.FURTHEST *)
Definition lucas_start : Z * Z := (2, 1)%Z.  (* core.formulas.lucas.START *)
Definition half_ulp : Q := 1 # 9007199254740992.  (* core.formulas.lucas.HALF_ULP *)
Definition eta : Z := 3.  (* core.formulas.halving.ETA *)
Definition certificate_threshold : Q := 7 # 2.  (* invariants.inv02_asha_threshold *)
Definition certificate_target : Q := 3 # 2.  (* invariants.inv02_asha_threshold *)
Definition certificate_gap : Q := 2 # 1.  (* invariants.inv02_asha_threshold *)
Definition entropy_states : Z := 9.  (* invariants.inv04_nca_entropy_band.STATES *)
Definition entropy_low : Q := 3 # 2.  (* invariants.inv04_nca_entropy_band *)
Definition entropy_high : Q := 14 # 5.  (* invariants.inv04_nca_entropy_band *)
Definition ema_start : Q := 249 # 250.  (* invariants.inv06_ema_decay *)
Definition ema_end : Q := 1 # 1.  (* invariants.inv06_ema_decay *)
Definition victory_target : Q := 3 # 2.  (* invariants.inv07_victory_gate *)
Definition victory_largest_alpha : Q := 1 # 20.  (* invariants.inv07_victory_gate.LARGEST_ALPHA *)
Definition victory_alpha : Q := 1 # 100.  (* invariants.inv07_victory_gate *)
Definition band_n : Z := 10.  (* invariants.inv08_lr_band *)
Definition band_k : Z := 1.  (* invariants.inv08_lr_band *)
