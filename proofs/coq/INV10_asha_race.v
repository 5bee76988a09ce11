(** INV-10, who survives: the order of (loss, place) is total, so the ranks of n trials are 0 … n - 1 once each, exactly
    keep n survive a rung and the best is among them; a trial that is best at every rung survives any number of rungs;
    after k rungs max(1, n div 3^k) of n remain. Losses are numbers here: where NaN ranks is shown elsewhere, for all
    doubles. *)

Require Import Reals Lra Lia ZArith List Bool Arith Permutation Sorted.
From Karat Require Import Carrier Constants INV10_asha_rungs.
Import ListNotations.

Section D.
Context {K : Carrier}.
Local Open Scope carrier_scope.

(** Without the branch for NaN: a carrier has none. *)
Definition goes_before (loss : K) (place : nat) (other : K) (other_place : nat) : bool :=
  if ltb loss other then true else if ltb other loss then false else (place <? other_place)%nat.

Definition rank (losses : list K) (place : nat) : nat :=
  length (filter (fun other => goes_before (at_place losses other) other (at_place losses place) place)
                 (seq 0 (length losses))).

Definition survivors (losses : list K) : list nat :=
  filter (fun place => (Z.of_nat (rank losses place) <? keep (Z.of_nat (length losses)))%Z) (seq 0 (length losses)).

Definition after_rung (alive : list nat) (losses : list K) : list nat :=
  map (fun place => nth place alive 0%nat) (survivors (map (at_place losses) alive)).

Definition last_alive (trials : nat) (rungs : list (list K)) : list nat := fold_left after_rung rungs (seq 0 trials).
End D.

(** -- the order -- *)

Local Open Scope R_scope.
Local Notation before := (@goes_before on_R).

(** What the order is: the lower loss, and of equal losses the first place. *)
Theorem order_is : forall (x : R) (i : nat) (y : R) (j : nat),
  before x i y j = true <-> x < y \/ (x = y /\ (i < j)%nat).
Proof.
  intros x i y j. unfold goes_before.
  compare; try destruct (Nat.ltb_spec i j); split; intros H'; try reflexivity; try discriminate;
    try (right; split; [lra | assumption]); try (left; lra); destruct H' as [H'|[H' H'']]; try lra; try lia.
Qed.

(** Of two trials at different places exactly one goes before the other. *)
Theorem order_total : forall (x : R) (i : nat) (y : R) (j : nat), i <> j -> before x i y j = negb (before y j x i).
Proof.
  intros x i y j H. destruct (before y j x i) eqn:E; simpl.
  - apply not_true_is_false. rewrite order_is in *. intros [A|[A B]]; destruct E as [C|[C D]]; try lra; lia.
  - rewrite order_is. apply not_true_iff_false in E. rewrite order_is in E.
    destruct (Rtotal_order x y) as [A|[A|A]]; [auto| |]; [right; split; [exact A|] | exfalso; apply E; auto].
    destruct (Nat.lt_ge_cases i j); [assumption|]. exfalso. apply E. right. split; [auto|lia].
Qed.

Lemma order_total_satisfiable : exists (x : R) (i : nat) (y : R) (j : nat), i <> j.
Proof. exists 0, 0%nat, 0, 1%nat. lia. Qed.

Lemma order_irreflexive (x : R) (i : nat) : before x i x i = false.
Proof. apply not_true_is_false. rewrite order_is. intros [H|[_ H]]; [lra | lia]. Qed.

Theorem order_transitive : forall (x : R) (i : nat) (y : R) (j : nat) (z : R) (k : nat),
  before x i y j = true -> before y j z k = true -> before x i z k = true.
Proof.
  intros x i y j z k. rewrite !order_is. intros [A|[A B]] [C|[C D]]; [left; lra .. | right; split; [lra | lia]].
Qed.

Lemma order_transitive_satisfiable : exists (x : R) (i : nat) (y : R) (j : nat) (z : R) (k : nat),
  before x i y j = true /\ before y j z k = true.
Proof.
  exists 0, 1%nat, 0, 2%nat, 1, 0%nat. rewrite !order_is. split; [right; split; [reflexivity | lia] | left; lra].
Qed.

(** -- ranks -- *)

Local Notation at_ := (@at_place on_R).
Local Notation rank_ := (@rank on_R).

Lemma filter_length_le {A} (f : A -> bool) (l : list A) : (length (filter f l) <= length l)%nat.
Proof. induction l as [|a l IH]; simpl; [lia|]. destruct (f a); simpl; lia. Qed.

Lemma filter_weaker {A} (f g : A -> bool) (l : list A) : (forall a, In a l -> f a = true -> g a = true) ->
  (length (filter f l) <= length (filter g l))%nat.
Proof.
  induction l as [|a l IH]; intro H; [simpl; lia|]. specialize (IH (fun b Hb => H b (or_intror Hb))). simpl.
  destruct (f a) eqn:F; [rewrite (H a (or_introl eq_refl) F)|destruct (g a)]; simpl; lia.
Qed.

Lemma filter_fewer {A} (f g : A -> bool) (l : list A) (x : A) : (forall a, In a l -> f a = true -> g a = true) ->
  In x l -> f x = false -> g x = true -> (length (filter f l) < length (filter g l))%nat.
Proof.
  intros H Hx Fx Gx. induction l as [|a l IH]; [destruct Hx|].
  assert (H' : forall b, In b l -> f b = true -> g b = true) by (intros b Hb; apply H; right; exact Hb).
  pose proof (filter_weaker f g l H'). simpl. destruct Hx as [->|Hx].
  - rewrite Fx, Gx. simpl. lia.
  - specialize (IH H' Hx). destruct (f a) eqn:F; [rewrite (H a (or_introl eq_refl) F)|destruct (g a)]; simpl; lia.
Qed.

Lemma rank_rises (losses : list on_R) (i j : nat) : (i < length losses)%nat ->
  before (at_ losses i) i (at_ losses j) j = true -> (rank_ losses i < rank_ losses j)%nat.
Proof.
  intros Hi H. unfold rank. apply filter_fewer with i; [|apply in_seq; lia | apply order_irreflexive | exact H].
  intros k _ Hk. eapply order_transitive; [exact Hk | exact H].
Qed.

(** One trial has the lower rank iff it goes before the other. *)
Theorem rank_orders : forall (losses : list on_R) (i j : nat), (i < length losses)%nat -> (j < length losses)%nat ->
  (rank_ losses i < rank_ losses j)%nat <-> before (at_ losses i) i (at_ losses j) j = true.
Proof.
  intros losses i j Hi Hj. split; [|apply rank_rises; exact Hi]. intro H.
  destruct (Nat.eq_dec i j) as [->|N]; [lia|]. rewrite order_total by exact N.
  destruct (before (at_ losses j) j (at_ losses i) i) eqn:E; [|reflexivity].
  pose proof (rank_rises losses j i Hj E). lia.
Qed.

Lemma rank_orders_satisfiable : exists (losses : list on_R) (i j : nat),
  (i < length losses)%nat /\ (j < length losses)%nat.
Proof. exists [1; 0], 0%nat, 1%nat. simpl. lia. Qed.

Lemma rank_below (losses : list on_R) (i : nat) : (i < length losses)%nat -> (rank_ losses i < length losses)%nat.
Proof.
  intro Hi. replace (length losses) with (length (filter (fun _ => true) (seq 0 (length losses)))).
  - apply filter_fewer with i; [reflexivity | apply in_seq; lia | apply order_irreflexive | reflexivity].
  - replace (filter (fun _ => true) (seq 0 (length losses))) with (seq 0 (length losses)); [apply seq_length|].
    induction (seq 0 (length losses)) as [|a l IH]; simpl; [reflexivity | f_equal; exact IH].
Qed.

(** The ranks of n trials are 0 … n - 1, each once. *)
Theorem ranks_permute : forall losses : list on_R,
  Permutation (map (rank_ losses) (seq 0 (length losses))) (seq 0 (length losses)).
Proof.
  intro losses. apply NoDup_Permutation_bis.
  - assert (H : forall l, NoDup l -> (forall i, In i l -> (i < length losses)%nat) -> NoDup (map (rank_ losses) l)).
    { induction l as [|i l IH]; intros D B; simpl; [constructor|]. inversion D as [|? ? N D']. subst. constructor.
      - rewrite in_map_iff. intros (j & E & Hj). assert (i <> j) by (intros ->; contradiction).
        pose proof (B i (or_introl eq_refl)) as Hi. pose proof (B j (or_intror Hj)) as Hj'.
        destruct (before (at_ losses i) i (at_ losses j) j) eqn:F.
        + pose proof (rank_rises losses i j Hi F). lia.
        + rewrite order_total in F by assumption. apply negb_false_iff in F.
          pose proof (rank_rises losses j i Hj' F). lia.
      - apply IH; [exact D' | intros; apply B; right; assumption]. }
    apply H; [apply seq_NoDup | intros i Hi; apply in_seq in Hi; lia].
  - rewrite map_length, seq_length. lia.
  - intros r Hr. apply in_map_iff in Hr as (i & <- & Hi). apply in_seq in Hi. apply in_seq.
    pose proof (rank_below losses i). lia.
Qed.

(** -- survivors -- *)

Local Notation survivors_ := (@survivors on_R).

Lemma filter_map {A B} (p : B -> bool) (f : A -> B) (l : list A) :
  filter p (map f l) = map f (filter (fun a => p (f a)) l).
Proof. induction l as [|a l IH]; simpl; [reflexivity|]. destruct (p (f a)); simpl; rewrite IH; reflexivity. Qed.

Lemma filter_permuted {A} (p : A -> bool) (l m : list A) : Permutation l m ->
  length (filter p l) = length (filter p m).
Proof.
  induction 1; simpl; [reflexivity | destruct (p x); simpl; lia | destruct (p x), (p y); reflexivity | lia].
Qed.

Lemma count_below (n : nat) (k : Z) : (0 <= k <= Z.of_nat n)%Z ->
  Z.of_nat (length (filter (fun r => (Z.of_nat r <? k)%Z) (seq 0 n))) = k.
Proof.
  induction n as [|n IH] in k |- *; intro Hk; [simpl; lia|].
  rewrite seq_S, filter_app, app_length. cbn [filter Nat.add].
  destruct (Z.eq_dec k (Z.of_nat (S n))) as [->|N].
  - destruct (Z.ltb_spec (Z.of_nat n) (Z.of_nat (S n))); [|lia]. cbn [length].
    rewrite (filter_ext_in _ (fun r => (Z.of_nat r <? Z.of_nat n)%Z)).
    + specialize (IH (Z.of_nat n)). lia.
    + intros a Ha. apply in_seq in Ha. destruct (Z.ltb_spec (Z.of_nat a) (Z.of_nat (S n))),
        (Z.ltb_spec (Z.of_nat a) (Z.of_nat n)); lia || reflexivity.
  - destruct (Z.ltb_spec (Z.of_nat n) k); [lia|]. cbn [length]. specialize (IH k). lia.
Qed.

(** Exactly keep n of n >= 1 trials survive, whatever their losses, ties included. *)
Theorem survivors_count : forall losses : list on_R, (1 <= length losses)%nat ->
  Z.of_nat (length (survivors_ losses)) = keep (Z.of_nat (length losses)).
Proof.
  intros losses Hn. set (k := keep (Z.of_nat (length losses))).
  assert (Hk : (0 <= k <= Z.of_nat (length losses))%Z).
  { destruct (keep_some (Z.of_nat (length losses))) as [? _]; [lia|]. fold k in H. lia. }
  unfold survivors. fold k.
  rewrite <- (map_length (rank_ losses)), <- (filter_map (fun r => (Z.of_nat r <? k)%Z)).
  rewrite (filter_permuted _ _ _ (ranks_permute losses)). apply count_below. exact Hk.
Qed.

Lemma survivors_count_satisfiable : exists losses : list on_R, (1 <= length losses)%nat.
Proof. exists [1; 0; 1]. simpl. lia. Qed.

(** Every survivor goes before every trial that is dropped. *)
Theorem survivors_first : forall (losses : list on_R) (i j : nat),
  In i (survivors_ losses) -> (j < length losses)%nat -> ~ In j (survivors_ losses) -> before (at_ losses i) i (at_ losses j) j = true.
Proof.
  intros losses i j Hi Hj N. unfold survivors in *. rewrite filter_In, in_seq in *.
  destruct Hi as [[_ Hi] R]. apply rank_orders; [lia | exact Hj |].
  destruct (Z.ltb_spec (Z.of_nat (rank_ losses j)) (keep (Z.of_nat (length losses)))) as [B|B].
  - exfalso. apply N. split; [lia|reflexivity].
  - apply Z.ltb_lt in R. lia.
Qed.

Lemma survivors_rank (losses : list on_R) (i : nat) : (i < length losses)%nat -> rank_ losses i = 0%nat ->
  In i (survivors_ losses).
Proof.
  intros Hi R. unfold survivors. apply filter_In. split; [apply in_seq; lia|]. rewrite R. apply Z.ltb_lt.
  pose proof (keep_some (Z.of_nat (length losses))). lia.
Qed.

Lemma survivors_first_satisfiable : exists (losses : list on_R) (i j : nat), In i (survivors_ losses) /\
  (j < length losses)%nat /\ ~ In j (survivors_ losses).
Proof.
  assert (H : survivors_ [1; 2] = [0%nat]).
  { unfold survivors, rank, goes_before, at_place, ltb. simpl. unfold Rleb.
    repeat match goal with |- context [Rle_dec ?x ?y] => destruct (Rle_dec x y); try lra end. reflexivity. }
  exists [1; 2], 0%nat, 1%nat. rewrite H. simpl. repeat split; [left; reflexivity | lia | intros [E|[]]; discriminate].
Qed.

(** The trial with the least loss, the first of those that share it, has rank 0 and survives. *)
Theorem best_survives : forall (losses : list on_R) (best : nat), (best < length losses)%nat ->
  (forall other, (other < length losses)%nat -> at_ losses best <= at_ losses other) ->
  (forall other, (other < best)%nat -> at_ losses best < at_ losses other) ->
  rank_ losses best = 0%nat /\ In best (survivors_ losses).
Proof.
  intros losses best Hb L F. assert (R : rank_ losses best = 0%nat).
  { unfold rank. rewrite (filter_ext_in _ (fun _ => false)).
    - induction (seq 0 (length losses)); [reflexivity | assumption].
    - intros k Hk. apply in_seq in Hk. apply not_true_is_false. rewrite order_is. intros [A|[A B]].
      + specialize (L k ltac:(lia)). lra.
      + specialize (F k B). lra. }
  split; [exact R | apply survivors_rank; assumption].
Qed.

Lemma best_survives_satisfiable : exists (losses : list on_R) (best : nat), (best < length losses)%nat /\
  (forall other, (other < length losses)%nat -> at_ losses best <= at_ losses other) /\
  (forall other, (other < best)%nat -> at_ losses best < at_ losses other).
Proof.
  exists [2; 1; 1], 1%nat. simpl. split; [lia|].
  split; intros [|[|[|other]]] H; try lia; simpl; unfold at_place; simpl; lra.
Qed.

(** -- the race -- *)

Local Notation after_ := (@after_rung on_R).
Local Notation last_alive_ := (@last_alive on_R).

Lemma survivors_sorted (losses : list on_R) : StronglySorted lt (survivors_ losses).
Proof.
  unfold survivors. set (p := fun place => _). generalize (length losses) at 1 as n. intro n.
  generalize 0%nat as start. induction n as [|n IH]; intro start; simpl; [constructor|].
  destruct (p start); [constructor; [apply IH|] | apply IH].
  apply Forall_forall. intros x Hx. apply filter_In in Hx as [Hx _]. apply in_seq in Hx. lia.
Qed.

Lemma nth_rises (l : list nat) : StronglySorted lt l ->
  forall i j, (i < j < length l)%nat -> (nth i l 0 < nth j l 0)%nat.
Proof.
  induction 1 as [|a l S IH F]; intros i j H; simpl in *; [lia|]. destruct j as [|j]; [lia|]. destruct i as [|i].
  - rewrite Forall_forall in F. apply F, nth_In. lia.
  - apply IH. lia.
Qed.

Lemma survivors_in (losses : list on_R) (i : nat) : In i (survivors_ losses) -> (i < length losses)%nat.
Proof. unfold survivors. rewrite filter_In, in_seq. lia. Qed.

Lemma map_rises (alive l : list nat) : StronglySorted lt alive -> StronglySorted lt l ->
  (forall i, In i l -> (i < length alive)%nat) -> StronglySorted lt (map (fun i => nth i alive 0%nat) l).
Proof.
  intros A S. induction S as [|i l S IH F]; intro B; simpl; constructor.
  - apply IH. intros j Hj. apply B. right. exact Hj.
  - rewrite Forall_forall in *. intros x Hx. apply in_map_iff in Hx as (j & <- & Hj).
    apply nth_rises; [exact A|]. split; [apply F; exact Hj | apply B; right; exact Hj].
Qed.

Lemma after_sorted (alive : list nat) (losses : list on_R) :
  StronglySorted lt alive -> StronglySorted lt (after_ alive losses).
Proof.
  intro A. apply map_rises; [exact A | apply survivors_sorted|].
  intros i Hi. apply survivors_in in Hi. rewrite map_length in Hi. exact Hi.
Qed.

Lemma after_in (alive : list nat) (losses : list on_R) (trial : nat) : In trial (after_ alive losses) -> In trial alive.
Proof.
  unfold after_rung. rewrite in_map_iff. intros (i & <- & Hi). apply survivors_in in Hi. rewrite map_length in Hi.
  apply nth_In. exact Hi.
Qed.

Lemma at_map (losses : list on_R) (alive : list nat) (i : nat) : (i < length alive)%nat ->
  at_ (map (at_ losses) alive) i = at_ losses (nth i alive 0%nat).
Proof.
  intro H. unfold at_place at 1. rewrite (nth_indep _ _ (at_ losses 0)) by (rewrite map_length; exact H).
  apply map_nth.
Qed.

Definition best_at (trials trial : nat) (losses : list on_R) : Prop :=
  (forall other, (other < trials)%nat -> at_ losses trial <= at_ losses other) /\
  (forall other, (other < trial)%nat -> at_ losses trial < at_ losses other).

Lemma after_best (trials trial : nat) (alive : list nat) (losses : list on_R) : StronglySorted lt alive ->
  (forall other, In other alive -> (other < trials)%nat) -> best_at trials trial losses -> In trial alive ->
  In trial (after_ alive losses).
Proof.
  intros S B [L F] H. destruct (In_nth _ _ 0%nat H) as (i & Hi & E). unfold after_rung. apply in_map_iff.
  exists i. split; [exact E|]. apply best_survives; rewrite ?map_length; [exact Hi| |].
  - intros j Hj. rewrite !at_map, E by assumption. apply L, B, nth_In, Hj.
  - intros j Hj. rewrite !at_map, E by lia. apply F. rewrite <- E. apply nth_rises; [exact S | lia].
Qed.

Lemma seq_sorted (n start : nat) : StronglySorted lt (seq start n).
Proof.
  revert start. induction n as [|n IH]; intro start; simpl; constructor; [apply IH|].
  apply Forall_forall. intros x Hx. apply in_seq in Hx. lia.
Qed.

(** The trials alive after any number of rungs are trials of the start, in rising order, no trial twice. *)
Theorem alive_are_trials : forall (trials : nat) (rungs : list (list on_R)),
  StronglySorted lt (last_alive_ trials rungs) /\
  (forall trial, In trial (last_alive_ trials rungs) -> (trial < trials)%nat).
Proof.
  intros trials rungs. unfold last_alive.
  assert (H : StronglySorted lt (seq 0 trials) /\ (forall t, In t (seq 0 trials) -> (t < trials)%nat)).
  { split; [apply seq_sorted | intros t Ht; apply in_seq in Ht; lia]. }
  revert H. generalize (seq 0 trials) as alive.
  induction rungs as [|losses rungs IH]; intros alive [S B]; simpl; [auto|].
  apply IH. split; [apply after_sorted; exact S|]. intros t Ht. apply B, (after_in _ _ _ Ht).
Qed.

(** A trial that is best at every rung, with the least loss of all and the first of those that share it, is alive after
    any number of rungs, whatever becomes of the others. *)
Theorem best_stays_alive : forall (trials : nat) (rungs : list (list on_R)) (trial : nat), (trial < trials)%nat ->
  (forall losses, In losses rungs -> best_at trials trial losses) -> In trial (last_alive_ trials rungs).
Proof.
  intros trials rungs trial Ht H. unfold last_alive.
  assert (P : StronglySorted lt (seq 0 trials) /\ (forall t, In t (seq 0 trials) -> (t < trials)%nat) /\
              In trial (seq 0 trials)).
  { split; [apply seq_sorted|]. split; [intros t T; apply in_seq in T; lia | apply in_seq; lia]. }
  revert P. generalize (seq 0 trials) as alive.
  induction rungs as [|losses rungs IH]; intros alive (S & B & I); simpl; [exact I|].
  apply IH; [intros; apply H; right; assumption|]. split; [apply after_sorted; exact S|]. split.
  - intros t T. apply B, (after_in _ _ _ T).
  - apply after_best with trials; [exact S | exact B | apply H; left; reflexivity | exact I].
Qed.

Lemma best_stays_alive_satisfiable : exists (trials : nat) (rungs : list (list on_R)) (trial : nat),
  (trial < trials)%nat /\ (forall losses, In losses rungs -> best_at trials trial losses).
Proof.
  exists 3%nat, [[2; 1; 1]; [3; 0; 5]], 1%nat. split; [lia|].
  intros losses [<-|[<-|[]]]; split; intros [|[|[|other]]] H; try lia; unfold at_place; simpl; lra.
Qed.

Lemma after_length (alive : list nat) (losses : list on_R) : (1 <= length alive)%nat ->
  Z.of_nat (length (after_ alive losses)) = keep (Z.of_nat (length alive)).
Proof.
  intro H. unfold after_rung. rewrite map_length, survivors_count, map_length; [reflexivity|].
  rewrite map_length. exact H.
Qed.

(** Of n >= 1 trials max(1, n div 3^k) are alive after k rungs, whatever the losses. *)
Theorem alive_count : forall (trials : nat) (rungs : list (list on_R)), (1 <= trials)%nat ->
  Z.of_nat (length (last_alive_ trials rungs)) = Z.max 1 (Z.of_nat trials / 3 ^ Z.of_nat (length rungs)).
Proof.
  intros trials rungs H. unfold last_alive. rewrite <- (seq_length trials 0) in H.
  rewrite <- (seq_length trials 0) at 2.
  revert H. generalize (seq 0 trials) as alive. induction rungs as [|losses rungs IH]; intros alive H.
  - simpl. rewrite Z.div_1_r. lia.
  - simpl fold_left. pose proof (after_length alive losses H) as L.
    pose proof (keep_some (Z.of_nat (length alive)) ltac:(lia)) as [K _].
    rewrite IH by lia. rewrite L. simpl length. rewrite power_S. pose proof (power_positive (length rungs)) as P.
    rewrite <- Z.div_div by lia. unfold keep, Constants.eta.
    destruct (Z.max_spec 1 (Z.of_nat (length alive) / 3)) as [[A ->]|[A ->]]; [reflexivity|].
    rewrite !Z.max_l; [reflexivity| |]; apply Z.div_le_upper_bound; nia.
Qed.

Lemma alive_count_satisfiable : exists (trials : nat) (rungs : list (list on_R)), (1 <= trials)%nat.
Proof. exists 9%nat, [[1; 2; 3]]. lia. Qed.

(** Exactly one trial is left after k rungs iff there were fewer than 2·3^k; so of n <= 3^k one is left. *)
Theorem one_left : forall (trials : nat) (rungs : list (list on_R)), (1 <= trials)%nat ->
  length (last_alive_ trials rungs) = 1%nat <-> (Z.of_nat trials < 2 * 3 ^ Z.of_nat (length rungs))%Z.
Proof.
  intros trials rungs H. pose proof (alive_count trials rungs H) as E. pose proof (power_positive (length rungs)) as P.
  set (p := (3 ^ Z.of_nat (length rungs))%Z) in *. pose proof (Z.div_mod (Z.of_nat trials) p ltac:(lia)) as D.
  pose proof (Z.mod_pos_bound (Z.of_nat trials) p ltac:(lia)) as M. split; intro Q; [nia|].
  assert (Z.of_nat trials / p <= 1)%Z by (apply Z.lt_succ_r, Z.div_lt_upper_bound; lia). lia.
Qed.

Lemma one_left_satisfiable : exists (trials : nat) (rungs : list (list on_R)), (1 <= trials)%nat.
Proof. exists 3%nat, [[1; 2; 3]]. lia. Qed.
