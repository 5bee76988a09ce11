(** INV-8: the learning-rate schedules, as they run, stay between 0 and their peak, never rise in their decay and end at
    their floor; and the seed's schedule, whose progress is not clamped, climbs back. Steps are reals here, so that every
    integer step is covered; the cosine is a parameter, cos (pi t) on the reals. *)

Require Import Reals Lra Lia.
From Karat Require Import Carrier Golden.

Section D.
Context {K : Carrier}.
Local Open Scope carrier_scope.

Definition clamp (x low high : K) : K :=
  if high <=? x then high else if ltb low x then x else low.

Definition linear_decay (step start end_ peak floor : K) : K :=
  if end_ <=? step then floor
  else clamp (floor + (peak - floor) * (one - (step - start) / (end_ - start))) floor peak.

Definition cosine_decay (cospi : K -> K) (step start end_ peak floor : K) : K :=
  if end_ <=? step then floor
  else let part := (step - start) / (end_ - start) in
       clamp (floor + (peak - floor) * (one + cospi part) / of_Z 2) floor peak.

Definition warmup_ramp (step warmup peak : K) : K := clamp (peak * (step + one) / warmup) zero peak.

Definition wsd (step warmup stable_end total peak floor : K) : K :=
  if ltb step warmup then warmup_ramp step warmup peak
  else if ltb step stable_end then peak
  else linear_decay step stable_end total peak floor.

Definition cosine (cospi : K -> K) (step warmup total peak floor : K) : K :=
  if ltb step warmup then warmup_ramp step warmup peak
  else cosine_decay cospi step warmup total peak floor.

(** The seed's schedule: no clamp, and no end. *)
Definition seed_schedule (cospi : K -> K) (step warmup stable_end total peak floor : K) : K :=
  if ltb step warmup then peak * step / warmup
  else if ltb step stable_end then peak
  else let part := (step - stable_end) / (total - stable_end) in
       floor + (peak - floor) * (one + cospi part) / of_Z 2.
End D.

Local Open Scope R_scope.

Notation clamp_R := (clamp (K := on_R)).
Notation wsd_R := (wsd (K := on_R)).
Definition cospi_R (t : R) : R := cos (PI * t).
Notation cosine_R := (cosine (K := on_R) cospi_R).
Notation seed_schedule_R := (seed_schedule (K := on_R) cospi_R).

(** A comparison whose outcome the hypotheses fix. *)
Ltac decided := compare; reflexivity || (exfalso; lra).

(** clamp is in its interval whatever x is, and is x inside it. *)
Theorem clamp_in_band : forall x low high : R, low <= high -> low <= clamp_R x low high <= high.
Proof. intros x low high H. unfold clamp. compare; lra. Qed.

Lemma clamp_in_band_satisfiable : exists x low high : R, low <= high.
Proof. exists 2, 0, 1. lra. Qed.

Theorem clamp_inside : forall x low high : R, low <= x <= high -> clamp_R x low high = x.
Proof. intros x low high H. unfold clamp. compare; lra. Qed.

Lemma clamp_inside_satisfiable : exists x low high : R, low <= x <= high.
Proof. exists (1 / 2), 0, 1. lra. Qed.

Lemma clamp_monotone (x y low high : R) : low <= high -> x <= y -> clamp_R x low high <= clamp_R y low high.
Proof. intros H Hxy. unfold clamp. compare; lra. Qed.

(** Progress through a decay, a number in [0, 1] before its end. *)
Lemma progress_in_unit (step start end_ : R) :
  start <= step -> step < end_ -> 0 <= (step - start) / (end_ - start) <= 1.
Proof.
  intros H1 H2. assert (0 < / (end_ - start)) by (apply Rinv_0_lt_compat; lra).
  assert (E : (end_ - start) * / (end_ - start) = 1) by (apply Rinv_r; lra).
  unfold Rdiv. nra.
Qed.

Lemma progress_monotone (step later start end_ : R) :
  step <= later -> start < end_ -> (step - start) / (end_ - start) <= (later - start) / (end_ - start).
Proof.
  intros H1 H2. unfold Rdiv. apply Rmult_le_compat_r; [|lra].
  left. apply Rinv_0_lt_compat. lra.
Qed.

(** On the plateau the rate is in [anchor / phi^k, anchor phi^k], for every anchor, if the peak is. *)
Theorem wsd_plateau : forall (k : nat) (anchor step warmup stable_end total peak floor : R),
  warmup <= step < stable_end ->
  anchor / phi ^ k <= peak <= anchor * phi ^ k ->
  anchor / phi ^ k <= wsd_R step warmup stable_end total peak floor <= anchor * phi ^ k.
Proof. intros. unfold wsd. compare; lra. Qed.

Lemma wsd_plateau_satisfiable : exists (k : nat) (anchor step warmup stable_end total peak floor : R),
  warmup <= step < stable_end /\ anchor / phi ^ k <= peak <= anchor * phi ^ k.
Proof.
  exists 1%nat, 1, 20, 10, 30, 40, 1, 0. split; [lra|].
  simpl. rewrite Rmult_1_r. unfold Rdiv. rewrite Rmult_1_l, phi_inverse. destruct phi_enclosed. lra.
Qed.

(** At every step the rate is neither negative nor above the peak. *)
Theorem wsd_in_range : forall step warmup stable_end total peak floor : R,
  0 <= floor <= peak -> 0 <= wsd_R step warmup stable_end total peak floor <= peak.
Proof.
  intros step warmup stable_end total peak floor H. unfold wsd, warmup_ramp, linear_decay, clamp, zero.
  compare; lra.
Qed.

Lemma wsd_in_range_satisfiable : exists step warmup stable_end total peak floor : R, 0 <= floor <= peak.
Proof. exists 35, 10, 30, 40, 1, (1 / 2). lra. Qed.

(** From the end of the warm-up on the rate is not below the floor. *)
Theorem wsd_above_floor : forall step warmup stable_end total peak floor : R,
  floor <= peak -> warmup <= step -> floor <= wsd_R step warmup stable_end total peak floor.
Proof.
  intros step warmup stable_end total peak floor H Hw. unfold wsd, linear_decay, clamp. compare; lra.
Qed.

Lemma wsd_above_floor_satisfiable : exists step warmup stable_end total peak floor : R, floor <= peak /\ warmup <= step.
Proof. exists 35, 10, 30, 40, 1, (1 / 2). lra. Qed.

(** From step `total` on, for ever, the rate is the floor. *)
Theorem wsd_ends_at_floor : forall step warmup stable_end total peak floor : R,
  warmup <= stable_end -> stable_end <= total -> total <= step -> wsd_R step warmup stable_end total peak floor = floor.
Proof. intros. unfold wsd, linear_decay. compare; lra. Qed.

Lemma wsd_ends_at_floor_satisfiable : exists step warmup stable_end total peak floor : R,
  warmup <= stable_end /\ stable_end <= total /\ total <= step.
Proof. exists 50, 10, 30, 40, 1, (1 / 2). lra. Qed.

(** The warm-up and the decay are the straight lines that they are said to be: the clamp changes neither. *)
Theorem wsd_warmup_line : forall step warmup stable_end total peak floor : R,
  0 <= peak -> 0 <= step -> step + 1 <= warmup -> wsd_R step warmup stable_end total peak floor = peak * (step + 1) / warmup.
Proof.
  intros step warmup stable_end total peak floor Hp Hs Hw. unfold wsd.
  replace (ltb (K := on_R) step warmup) with true by decided.
  unfold warmup_ramp. apply clamp_inside. unfold zero, one. simpl.
  assert (0 < / warmup) by (apply Rinv_0_lt_compat; lra).
  assert (E : (step + 1) * / warmup <= 1).
  { apply Rle_trans with (warmup * / warmup); [apply Rmult_le_compat_r; lra | rewrite Rinv_r; lra]. }
  assert (0 <= (step + 1) * / warmup) by (apply Rmult_le_pos; lra).
  unfold Rdiv. rewrite Rmult_assoc. nra.
Qed.

Lemma wsd_warmup_line_satisfiable : exists step warmup stable_end total peak floor : R,
  0 <= peak /\ 0 <= step /\ step + 1 <= warmup.
Proof. exists 5, 10, 30, 40, 1, (1 / 2). lra. Qed.

Theorem wsd_decay_line : forall step warmup stable_end total peak floor : R,
  floor <= peak -> warmup <= stable_end -> stable_end <= step < total ->
  wsd_R step warmup stable_end total peak floor = floor + (peak - floor) * ((total - step) / (total - stable_end)).
Proof.
  intros step warmup stable_end total peak floor Hf Hw Hs.
  destruct (progress_in_unit step stable_end total) as [P0 P1]; try lra.
  assert (E : (total - step) / (total - stable_end) = 1 - (step - stable_end) / (total - stable_end)) by (field; lra).
  rewrite E. unfold wsd, linear_decay.
  replace (ltb (K := on_R) step warmup) with false by decided.
  replace (ltb (K := on_R) step stable_end) with false by decided.
  replace (leb (c := on_R) total step) with false by decided.
  apply clamp_inside. simpl. nra.
Qed.

Lemma wsd_decay_line_satisfiable : exists step warmup stable_end total peak floor : R,
  floor <= peak /\ warmup <= stable_end /\ stable_end <= step < total.
Proof. exists 35, 10, 30, 40, 1, (1 / 2). lra. Qed.

(** From stable_end on the rate never rises, from any step to any later one, past the end too. *)
Theorem wsd_never_rises : forall step later warmup stable_end total peak floor : R,
  floor <= peak -> warmup <= stable_end -> stable_end <= step -> step <= later ->
  wsd_R later warmup stable_end total peak floor <= wsd_R step warmup stable_end total peak floor.
Proof.
  intros step later warmup stable_end total peak floor Hf Hw Hs Hl. unfold wsd, linear_decay. simpl.
  assert (Z : forall x : R, stable_end <= x -> ltb (K := on_R) x warmup = false /\ ltb (K := on_R) x stable_end = false)
    by (intros x Hx; split; decided).
  destruct (Z step) as [-> ->]; [lra|]. destruct (Z later) as [-> ->]; [lra|].
  generalize (Rleb_spec total step) (Rleb_spec total later).
  destruct (Rleb total step), (Rleb total later); intros T1 T2; try lra.
  - apply clamp_in_band. lra.
  - apply clamp_monotone; [lra|].
    pose proof (progress_monotone step later stable_end total Hl). unfold one; simpl. nra.
Qed.

Lemma wsd_never_rises_satisfiable : exists step later warmup stable_end total peak floor : R,
  floor <= peak /\ warmup <= stable_end /\ stable_end <= step /\ step <= later.
Proof. exists 33, 37, 10, 30, 40, 1, (1 / 2). lra. Qed.

(** The cosine schedule: the same range, the same end, and its decay never rises. *)
Theorem cosine_in_range : forall step warmup total peak floor : R,
  0 <= floor <= peak -> 0 <= cosine_R step warmup total peak floor <= peak.
Proof.
  intros step warmup total peak floor H. unfold cosine, warmup_ramp, cosine_decay, clamp, zero. compare; lra.
Qed.

Lemma cosine_in_range_satisfiable : exists step warmup total peak floor : R, 0 <= floor <= peak.
Proof. exists 35, 10, 40, 1, (1 / 2). lra. Qed.

Theorem cosine_ends_at_floor : forall step warmup total peak floor : R,
  warmup <= total -> total <= step -> cosine_R step warmup total peak floor = floor.
Proof. intros. unfold cosine, cosine_decay. compare; lra. Qed.

Lemma cosine_ends_at_floor_satisfiable : exists step warmup total peak floor : R, warmup <= total /\ total <= step.
Proof. exists 50, 10, 40, 1, (1 / 2). lra. Qed.

Theorem cosine_decay_curve : forall step warmup total peak floor : R,
  floor <= peak -> warmup <= step < total ->
  cosine_R step warmup total peak floor
  = floor + (peak - floor) * (1 + cos (PI * ((step - warmup) / (total - warmup)))) / 2.
Proof.
  intros step warmup total peak floor Hf Hs. unfold cosine, cosine_decay.
  replace (ltb (K := on_R) step warmup) with false by decided.
  replace (leb (c := on_R) total step) with false by decided.
  apply clamp_inside. simpl. unfold cospi_R.
  destruct (COS_bound (PI * ((step - warmup) / (total - warmup)))). unfold Rdiv in *. nra.
Qed.

Lemma cosine_decay_curve_satisfiable : exists step warmup total peak floor : R, floor <= peak /\ warmup <= step < total.
Proof. exists 35, 10, 40, 1, (1 / 2). lra. Qed.

Theorem cosine_never_rises : forall step later warmup total peak floor : R,
  floor <= peak -> warmup <= step -> step <= later ->
  cosine_R later warmup total peak floor <= cosine_R step warmup total peak floor.
Proof.
  intros step later warmup total peak floor Hf Hs Hl. unfold cosine, cosine_decay. simpl.
  assert (Z : forall x : R, warmup <= x -> ltb (K := on_R) x warmup = false) by (intros; decided).
  rewrite (Z step), (Z later) by lra.
  generalize (Rleb_spec total step) (Rleb_spec total later).
  destruct (Rleb total step), (Rleb total later); intros T1 T2; try lra.
  - apply clamp_in_band. lra.
  - apply clamp_monotone; [lra|].
    assert (C : cospi_R ((later - warmup) / (total - warmup)) <= cospi_R ((step - warmup) / (total - warmup))).
    { destruct (progress_in_unit step warmup total) as [A0 A1]; try lra.
      destruct (progress_in_unit later warmup total) as [B0 B1]; try lra.
      pose proof (progress_monotone step later warmup total Hl). pose proof PI_RGT_0.
      unfold cospi_R. apply cos_decr_1; nra. }
    unfold one; simpl. unfold Rdiv at 1 3. nra.
Qed.

Lemma cosine_never_rises_satisfiable : exists step later warmup total peak floor : R,
  floor <= peak /\ warmup <= step /\ step <= later.
Proof. exists 33, 37, 10, 40, 1, (1 / 2). lra. Qed.

(** The seed's schedule is back at its peak 2, 4, 6, ... decay lengths after the decay began: past its declared end. *)
Theorem seed_returns_to_peak : forall (turns : nat) (warmup stable_end total peak floor : R),
  warmup <= stable_end -> stable_end < total ->
  seed_schedule_R (stable_end + 2 * INR turns * (total - stable_end))%R warmup stable_end total peak floor = peak.
Proof.
  intros turns warmup stable_end total peak floor Hw Ht. pose proof (pos_INR turns).
  assert (stable_end <= stable_end + 2 * INR turns * (total - stable_end)) by nra.
  unfold seed_schedule.
  replace (ltb (K := on_R) (stable_end + 2 * INR turns * (total - stable_end))%R warmup) with false
    by decided.
  replace (ltb (K := on_R) (stable_end + 2 * INR turns * (total - stable_end))%R stable_end) with false
    by decided.
  simpl. unfold cospi_R.
  replace (PI * ((stable_end + 2 * INR turns * (total - stable_end) - stable_end) / (total - stable_end)))
    with (0 + 2 * INR turns * PI) by (field; lra).
  rewrite cos_period, cos_0. lra.
Qed.

Lemma seed_returns_to_peak_satisfiable : exists (turns : nat) (warmup stable_end total peak floor : R),
  warmup <= stable_end /\ stable_end < total.
Proof. exists 3%nat, 500, 800, 1000, (1 / 50), (1 / 500). lra. Qed.

(** With the seed's own numbers: at the floor at its declared end, step 1000, and back at its peak at step 2000. *)
Theorem seed_rises_again :
  seed_schedule_R 1000 500 800 1000 (1 / 50)%R (1 / 500)%R = 1 / 500 /\
  seed_schedule_R 2000 500 800 1000 (1 / 50)%R (1 / 500)%R = 1 / 50.
Proof.
  split.
  - unfold seed_schedule. compare; try lra. unfold cospi_R.
    replace (PI * ((1000 - 800) / (1000 - 800))) with PI by field. rewrite cos_PI. lra.
  - replace 2000 with (800 + 2 * INR 3 * (1000 - 800)) by (simpl; lra).
    apply seed_returns_to_peak; lra.
Qed.
