(** INV-6 ema-decay: the decay rises along half a cosine from its start to its end and never leaves them; an average stays
    between itself and its weight whatever the decay, so over any number of updates in any bounds that hold of both. *)

Require Import Reals Lra Lia QArith Qreals.
From Karat Require Import Carrier Clamp Constants.

Section Formulas.
Context {K : Carrier}.
Local Open Scope carrier_scope.

(** finish: the end of the band; `end` is a word of Coq's. *)
Definition blend (cosine start finish : K) : K :=
  clamp (finish - (finish - start) * (one + cosine) / of_Z 2) start finish.

(** cospi: cos (pi x). *)
Definition decay_at (cospi : K -> K) (step total start finish : K) : K :=
  blend (cospi (minimum step total / total)) start finish.

Definition averaged (average weight decay : K) : K :=
  let moved := average + (one - decay) * (weight - average) in
  maximum (minimum moved (maximum average weight)) (minimum average weight).

Definition margin (decay scheduled previous outside low high : K) : K :=
  let in_band := minimum (decay - low) (high - decay) in
  let on_schedule := opp (absolute (decay - scheduled)) in
  let risen := decay - previous in
  minimum (minimum in_band on_schedule) (minimum risen (opp outside)).
End Formulas.

Local Open Scope R_scope.

Definition cospi (x : R) : R := cos (PI * x).
Local Notation decay := (decay_at (K := on_R) cospi).
Local Notation update := (averaged (K := on_R)).

Lemma blend_inside (cosine start finish : R) : start <= finish -> -1 <= cosine <= 1 ->
  blend (K := on_R) cosine start finish = finish - (finish - start) * (1 + cosine) / 2.
Proof. intros H C. apply clamp_inside. unfold one. simpl. nra. Qed.

(** What is held to [start, finish] is in it: at every step of every total, and past it. *)
Theorem decay_in_band (step total start finish : R) : start <= finish -> start <= decay step total start finish <= finish.
Proof. intro H. apply clamp_between. exact H. Qed.

Lemma decay_in_band_satisfiable : exists step total start finish : R, start <= finish.
Proof. exists 3, 10, (1 / 2), 1. lra. Qed.

(** Up to its total the decay is the cosine itself: the clamp changes nothing. *)
Theorem decay_is (step total start finish : R) : 0 < total -> step <= total -> start <= finish ->
  decay step total start finish = finish - (finish - start) * (1 + cos (PI * (step / total))) / 2.
Proof.
  intros T S H. unfold decay_at. rewrite minimum_Rmin, Rmin_left by exact S.
  apply blend_inside; [exact H | apply COS_bound].
Qed.

Lemma decay_is_satisfiable : exists step total start finish : R, 0 < total /\ step <= total /\ start <= finish.
Proof. exists 3, 10, (1 / 2), 1. lra. Qed.

(** It begins at its start. *)
Theorem decay_begins (total start finish : R) : 0 < total -> start <= finish -> decay 0 total start finish = start.
Proof.
  intros T H. rewrite decay_is by lra. replace (PI * (0 / total)) with 0 by (field; lra). rewrite cos_0.
  change (finish - (finish - start) * (1 + 1) / 2 = start). field.
Qed.

Lemma decay_begins_satisfiable : exists total start finish : R, 0 < total /\ start <= finish.
Proof. exists 10, (1 / 2), 1. lra. Qed.

Lemma decay_past (step total start finish : R) : total <= step ->
  decay step total start finish = decay total total start finish.
Proof. intro S. unfold decay_at. rewrite !minimum_Rmin, !Rmin_right by lra. reflexivity. Qed.

(** And is at its end from the total on. *)
Theorem decay_ends (step total start finish : R) : 0 < total -> total <= step -> start <= finish ->
  decay step total start finish = finish.
Proof.
  intros T S H. rewrite decay_past, decay_is by lra. replace (PI * (total / total)) with PI by (field; lra).
  rewrite cos_PI. change (finish - (finish - start) * (1 + -1) / 2 = finish). field.
Qed.

Lemma decay_ends_satisfiable : exists step total start finish : R, 0 < total /\ total <= step /\ start <= finish.
Proof. exists 12, 10, (1 / 2), 1. lra. Qed.

Lemma angle (step total : R) : 0 < total -> 0 <= step <= total -> 0 <= PI * (step / total) <= PI.
Proof.
  intros T S. pose proof PI_RGT_0. assert (0 <= step / total <= 1); [|nra].
  split; [apply Rle_mult_inv_pos; lra | apply (Rmult_le_reg_r total); [exact T|]].
  unfold Rdiv. rewrite Rmult_assoc, Rinv_l by lra. lra.
Qed.

(** Up to the total it rises with every step: it is never stuck. *)
Theorem decay_rises (step later total start finish : R) :
  0 <= step -> step < later -> later <= total -> start < finish ->
  decay step total start finish < decay later total start finish.
Proof.
  intros S L T H. rewrite !decay_is by lra.
  destruct (angle step total) as [A B]; [lra | lra |]. destruct (angle later total) as [C D]; [lra | lra |].
  assert (PI * (step / total) < PI * (later / total)).
  { apply Rmult_lt_compat_l; [exact PI_RGT_0|]. apply Rmult_lt_compat_r; [apply Rinv_0_lt_compat|]; lra. }
  pose proof (cos_decreasing_1 _ _ A B C D ltac:(assumption)). nra.
Qed.

Lemma decay_rises_satisfiable : exists step later total start finish : R,
  0 <= step /\ step < later /\ later <= total /\ start < finish.
Proof. exists 3, 4, 10, (1 / 2), 1. lra. Qed.

(** And it never falls, past the total too. *)
Theorem decay_never_falls (step later total start finish : R) :
  0 < total -> 0 <= step -> step <= later -> start <= finish ->
  decay step total start finish <= decay later total start finish.
Proof.
  intros T S L H. destruct (Rle_lt_dec total later) as [E|E].
  - rewrite (decay_ends later) by lra. apply decay_in_band. exact H.
  - destruct L as [L | ->]; [|apply Rle_refl]. destruct H as [H | ->].
    + left. apply decay_rises; lra.
    + rewrite !decay_is by lra. right. simpl. field.
Qed.

Lemma decay_never_falls_satisfiable : exists step later total start finish : R,
  0 < total /\ 0 <= step /\ step <= later /\ start <= finish.
Proof. exists 3, 12, 10, (1 / 2), 1. lra. Qed.

(** The declared decay runs from 0.996 to 1: at every step between them, first at the one and from the total on at the
    other. *)
Theorem declared_decay (step total : R) : 0 < total ->
  249 / 250 <= decay step total (Q2R ema_start) (Q2R ema_end) <= 1 /\
  decay 0 total (Q2R ema_start) (Q2R ema_end) = 249 / 250 /\
  (total <= step -> decay step total (Q2R ema_start) (Q2R ema_end) = 1).
Proof.
  intro T. replace (Q2R ema_start) with (249 / 250) by (unfold ema_start, Q2R; simpl; lra).
  replace (Q2R ema_end) with 1 by (unfold ema_end, Q2R; simpl; lra). repeat split.
  - apply decay_in_band. lra.
  - apply decay_in_band. lra.
  - apply decay_begins; lra.
  - intro S. apply decay_ends; lra.
Qed.

Lemma declared_decay_satisfiable : exists step total : R, 0 < total.
Proof. exists 3, 10. lra. Qed.

Lemma update_is (average weight d : R) :
  update average weight d =
  Rmax (Rmin (average + (1 - d) * (weight - average)) (Rmax average weight)) (Rmin average weight).
Proof. unfold averaged. rewrite !maximum_Rmax, !minimum_Rmin. reflexivity. Qed.

(** The updated average lies between the old one and the weight, for any decay whatever. *)
Theorem update_in_hull (average weight d : R) :
  Rmin average weight <= update average weight d <= Rmax average weight.
Proof. rewrite update_is. unfold Rmax, Rmin. repeat destruct Rle_dec; lra. Qed.

(** For a decay in [0, 1] it is decay·average + (1 - decay)·weight: holding it changes nothing. *)
Theorem update_is_the_mixture (average weight d : R) : 0 <= d <= 1 ->
  update average weight d = d * average + (1 - d) * weight.
Proof.
  intro D. rewrite update_is.
  replace (average + (1 - d) * (weight - average)) with (d * average + (1 - d) * weight) by ring.
  destruct (Rle_dec average weight) as [L|L].
  - rewrite (Rmax_right average), (Rmin_left average) by lra. rewrite Rmin_left, Rmax_left; nra.
  - rewrite (Rmax_left average), (Rmin_right average) by lra. rewrite Rmin_left, Rmax_left; nra.
Qed.

Lemma update_is_the_mixture_satisfiable : exists average weight d : R, 0 <= d <= 1.
Proof. exists 1, 2, (249 / 250). lra. Qed.

(** The average after a number of updates, each with a weight and a decay of its own. *)
Fixpoint after (start : R) (weights decays : nat -> R) (updates : nat) : R :=
  match updates with O => start | S k => update (after start weights decays k) (weights k) (decays k) end.

(** Whatever the decays: bounds that hold of the start and of every weight hold of the average after any number of updates. *)
Theorem average_stays_in_bounds (start low high : R) (weights decays : nat -> R) (updates : nat) :
  low <= start <= high -> (forall k, (k < updates)%nat -> low <= weights k <= high) ->
  low <= after start weights decays updates <= high.
Proof.
  intros S W. induction updates as [|n IH]; [exact S|]. simpl.
  assert (low <= after start weights decays n <= high) as B by (apply IH; intros; apply W; lia).
  specialize (W n ltac:(lia)). pose proof (update_in_hull (after start weights decays n) (weights n) (decays n)) as [L H].
  pose proof (Rmin_glb (after start weights decays n) (weights n) low).
  pose proof (Rmax_lub (after start weights decays n) (weights n) high). lra.
Qed.

Lemma average_stays_in_bounds_satisfiable :
  exists (start low high : R) (weights decays : nat -> R) (updates : nat),
  low <= start <= high /\ (forall k, (k < updates)%nat -> low <= weights k <= high).
Proof. exists 1, 0, 3, (fun _ => 2), (fun _ => 1 / 2), 5%nat. split; [lra | intros; lra]. Qed.

Fixpoint product (n : nat) (f : nat -> R) : R := match n with O => 1 | S k => product k f * f k end.

(** Towards a weight that stands still the distance shrinks by each decay, exactly. *)
Theorem average_approaches (start weight : R) (decays : nat -> R) (updates : nat) :
  (forall k, (k < updates)%nat -> 0 <= decays k <= 1) ->
  after start (fun _ => weight) decays updates - weight = product updates decays * (start - weight).
Proof.
  induction updates as [|n IH]; intro D; [simpl; lra|]. simpl after. simpl product.
  rewrite update_is_the_mixture by (apply D; lia).
  assert (E : after start (fun _ => weight) decays n - weight = product n decays * (start - weight))
    by (apply IH; intros; apply D; lia).
  replace (product n decays * decays n * (start - weight)) with (decays n * (product n decays * (start - weight))) by ring.
  rewrite <- E. change (num on_R) with R. ring.
Qed.

Lemma average_approaches_satisfiable : exists (start weight : R) (decays : nat -> R) (updates : nat),
  forall k, (k < updates)%nat -> 0 <= decays k <= 1.
Proof. exists 1, 2, (fun _ => 249 / 250), 5%nat. intros; lra. Qed.

(** The guard's margin is not negative exactly where the decay is in the band, on its schedule, not below the one before,
    and no average is outside its hull. *)
Theorem margin_is_the_guard (d scheduled previous outside low high : R) :
  0 <= margin (K := on_R) d scheduled previous outside low high <->
  low <= d <= high /\ d = scheduled /\ previous <= d /\ outside <= 0.
Proof.
  unfold margin. rewrite absolute_Rabs, !minimum_Rmin. unfold opp, zero. simpl.
  assert (E : 0 <= 0 - Rabs (d - scheduled) <-> d = scheduled).
  { split; [intro H | intros ->; replace (scheduled - scheduled) with 0 by ring; rewrite Rabs_R0; lra].
    pose proof (Rle_abs (d - scheduled)). pose proof (Rle_abs (- (d - scheduled))) as B. rewrite Rabs_Ropp in B. lra. }
  rewrite <- E. unfold Rmin. repeat destruct Rle_dec; lra.
Qed.
