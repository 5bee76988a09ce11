(** INV-10: the rungs are r0·3^k below the end, all of them and no other, in rising order; those due after a step are
    the rungs of a shorter run; of n >= 1 trials a rung keeps a third, rounded down, at least one; and the guard's
    distance is 0 iff the rungs are those that were due. Who survives: INV10_asha_race.v. *)

Require Import Reals Lra Lia ZArith List Sorted.
From Karat Require Import Carrier Constants.
Import ListNotations.

(** -- rungs -- *)

Definition next_rung (rung : Z) : Z := rung * Constants.eta.

(** The loop `while rung < total`, at most `fuel` times around. *)
Fixpoint rungs_from (fuel : nat) (rung total : Z) : list Z :=
  match fuel with
  | O => []
  | S fuel => if (rung <? total)%Z then rung :: rungs_from fuel (next_rung rung) total else []
  end.

(** log2 total turns are enough from a first rung of 1 or more; rungs_all below shows that none is missing. *)
Definition rung_steps (r0 total : Z) : list Z := rungs_from (Z.to_nat (Z.log2_up total)) r0 total.

Definition rungs_due (rungs : list Z) (step : Z) : list Z := filter (fun rung => (rung <=? step)%Z) rungs.

Definition keep (n : Z) : Z := Z.max 1 (n / Constants.eta).

Section D.
Context {K : Carrier}.
Local Open Scope carrier_scope.

(** The largest of the difference in number and the distances |rung - due|, as the running loop builds it. *)
Definition misplaced (rungs due : list K) : K :=
  fold_left (fun worst pair => maximum worst (absolute (fst pair - snd pair))) (combine rungs due)
            (absolute (of_Z (Z.of_nat (length rungs)) - of_Z (Z.of_nat (length due)))).

End D.

Local Open Scope Z_scope.

Lemma power_S (k : nat) : 3 ^ Z.of_nat (S k) = 3 * 3 ^ Z.of_nat k.
Proof. rewrite Nat2Z.inj_succ, Z.pow_succ_r by lia. reflexivity. Qed.

Lemma power_positive (k : nat) : 1 <= 3 ^ Z.of_nat k.
Proof. pose proof (Z.pow_pos_nonneg 3 (Z.of_nat k)). lia. Qed.

Lemma rungs_from_nth (fuel : nat) : forall (rung total : Z) (k : nat), 1 <= rung -> total <= rung * 3 ^ Z.of_nat fuel ->
  nth_error (rungs_from fuel rung total) k =
  (if rung * 3 ^ Z.of_nat k <? total then Some (rung * 3 ^ Z.of_nat k) else None).
Proof.
  induction fuel as [|fuel IH]; intros rung total k Hr Ht.
  - simpl in Ht. replace (nth_error (rungs_from 0 rung total) k) with (@None Z) by (destruct k; reflexivity).
    pose proof (power_positive k). destruct (Z.ltb_spec (rung * 3 ^ Z.of_nat k) total); [nia | reflexivity].
  - simpl rungs_from. pose proof (power_positive k). destruct (Z.ltb_spec rung total) as [H1|H1].
    + destruct k as [|k].
      * simpl. rewrite Z.mul_1_r. destruct (Z.ltb_spec rung total); [reflexivity | lia].
      * simpl nth_error. unfold next_rung, Constants.eta. rewrite power_S in *.
        rewrite IH by (try rewrite power_S in Ht; lia).
        replace (rung * 3 * 3 ^ Z.of_nat k) with (rung * (3 * 3 ^ Z.of_nat k)) by ring. reflexivity.
    + replace (nth_error (@nil Z) k) with (@None Z) by (destruct k; reflexivity).
      destruct (Z.ltb_spec (rung * 3 ^ Z.of_nat k) total); [nia | reflexivity].
Qed.

Lemma fuel_suffices (r0 total : Z) : 1 <= r0 -> total <= r0 * 3 ^ Z.of_nat (Z.to_nat (Z.log2_up total)).
Proof.
  intro Hr. rewrite Z2Nat.id by apply Z.log2_up_nonneg.
  destruct (Z.le_gt_cases total 1) as [H|H].
  - pose proof (Z.pow_pos_nonneg 3 (Z.log2_up total)). pose proof (Z.log2_up_nonneg total). nia.
  - pose proof (Z.log2_up_spec total H) as [_ H2]. pose proof (Z.log2_up_nonneg total).
    assert (2 ^ Z.log2_up total <= 3 ^ Z.log2_up total) by (apply Z.pow_le_mono_l; lia). nia.
Qed.

(** The k-th rung is r0·3^k if that is below the end, and there is none if it is not, for every k. *)
Theorem rungs_all : forall (r0 total : Z) (k : nat), 1 <= r0 ->
  nth_error (rung_steps r0 total) k =
  (if r0 * 3 ^ Z.of_nat k <? total then Some (r0 * 3 ^ Z.of_nat k) else None).
Proof. intros. apply rungs_from_nth; [lia | apply fuel_suffices; lia]. Qed.

Lemma rungs_all_satisfiable : exists (r0 total : Z) (k : nat), 1 <= r0.
Proof. exists 400, 1200, 1%nat. lia. Qed.

(** A step is a rung iff it is r0·3^k for some k and before the end. *)
Theorem rungs_exactly : forall r0 total rung : Z, 1 <= r0 ->
  In rung (rung_steps r0 total) <-> exists k : nat, rung = r0 * 3 ^ Z.of_nat k /\ rung < total.
Proof.
  intros r0 total rung Hr. split.
  - intro H. apply In_nth_error in H as [k H]. exists k. rewrite rungs_all in H by lia.
    destruct (Z.ltb_spec (r0 * 3 ^ Z.of_nat k) total); inversion H. split; [reflexivity | lia].
  - intros (k & -> & H). apply nth_error_In with k. rewrite rungs_all by lia.
    destruct (Z.ltb_spec (r0 * 3 ^ Z.of_nat k) total); [reflexivity | lia].
Qed.

Lemma rungs_exactly_satisfiable : exists r0 total rung : Z, 1 <= r0.
Proof. exists 400, 1200, 400. lia. Qed.

Lemma rungs_from_above (fuel : nat) : forall rung total : Z, 1 <= rung ->
  Forall (fun later => rung <= later) (rungs_from fuel rung total).
Proof.
  induction fuel as [|fuel IH]; intros rung total Hr; simpl; [constructor|].
  destruct (Z.ltb_spec rung total); constructor; [lia|].
  eapply Forall_impl; [|apply IH; unfold next_rung, Constants.eta; lia].
  intros later. unfold next_rung, Constants.eta. lia.
Qed.

(** Rungs rise strictly. *)
Theorem rungs_rise : forall r0 total : Z, 1 <= r0 -> StronglySorted Z.lt (rung_steps r0 total).
Proof.
  intros r0 total. unfold rung_steps. generalize (Z.to_nat (Z.log2_up total)) as fuel. intro fuel. revert r0.
  induction fuel as [|fuel IH]; intros rung Hr; simpl; [constructor|].
  destruct (Z.ltb_spec rung total); constructor.
  - apply IH. unfold next_rung, Constants.eta. lia.
  - eapply Forall_impl; [|apply rungs_from_above; unfold next_rung, Constants.eta; lia].
    intros later. unfold next_rung, Constants.eta. lia.
Qed.

Lemma rungs_rise_satisfiable : exists r0 total : Z, 1 <= r0.
Proof. exists 400, 1200. lia. Qed.

Lemma rungs_equal (r0 total : Z) (l : list Z) : 1 <= r0 ->
  (forall k, nth_error l k = (if r0 * 3 ^ Z.of_nat k <? total then Some (r0 * 3 ^ Z.of_nat k) else None)) ->
  rung_steps r0 total = l.
Proof.
  intros Hr H. pose proof (fun k => rungs_all r0 total k Hr) as E.
  assert (P : forall k, nth_error (rung_steps r0 total) k = nth_error l k) by (intro; rewrite E, H; reflexivity).
  clear E H. revert P. generalize (rung_steps r0 total) as m. induction l as [|x l IH]; intros [|y m] P; auto.
  - discriminate (P 0%nat).
  - discriminate (P 0%nat).
  - f_equal; [injection (P 0%nat); auto | apply (IH m); intro k; apply (P (S k))].
Qed.

Lemma due_from (fuel : nat) : forall rung total step : Z, 1 <= rung ->
  rungs_due (rungs_from fuel rung total) step = rungs_from fuel rung (Z.min total (step + 1)).
Proof.
  induction fuel as [|fuel IH]; intros rung total step Hr; [reflexivity|]. simpl.
  destruct (Z.ltb_spec rung total) as [H|H],
    (Z.ltb_spec rung (Z.min total (step + 1))) as [H1|H1]; try lia; [| |reflexivity].
  - simpl. destruct (Z.leb_spec rung step); [|lia]. f_equal. apply IH. unfold next_rung, Constants.eta. lia.
  - simpl. destruct (Z.leb_spec rung step); [lia|]. rewrite IH by (unfold next_rung, Constants.eta; lia).
    destruct fuel as [|fuel]; [reflexivity|]. simpl. unfold next_rung, Constants.eta.
    destruct (Z.ltb_spec (rung * 3) (Z.min total (step + 1))); [lia | reflexivity].
Qed.

(** The rungs due after a step are the rungs of a run that ends just after that step, or earlier. *)
Theorem due_are_rungs : forall r0 total step : Z, 1 <= r0 ->
  rungs_due (rung_steps r0 total) step = rung_steps r0 (Z.min total (step + 1)).
Proof.
  intros r0 total step Hr. symmetry. apply rungs_equal; [lia|]. intro k. unfold rung_steps.
  rewrite due_from by lia. apply rungs_from_nth; [lia|].
  pose proof (fuel_suffices r0 total Hr). lia.
Qed.

Lemma due_are_rungs_satisfiable : exists r0 total step : Z, 1 <= r0.
Proof. exists 400, 9000, 1200. lia. Qed.

(** -- how many are kept -- *)

(** Of n >= 1 trials at least one and at most n are kept: one of fewer than six, and the whole third of any more. *)
Theorem keep_some : forall n : Z, 1 <= n ->
  1 <= keep n <= n /\ (n < 6 -> keep n = 1) /\ (3 <= n -> 3 * keep n <= n < 3 * keep n + 3).
Proof.
  intros n Hn. unfold keep, Constants.eta. pose proof (Z.div_mod n 3). pose proof (Z.mod_pos_bound n 3). lia.
Qed.

Lemma keep_some_satisfiable : exists n : Z, 1 <= n.
Proof. exists 7. lia. Qed.

(** -- the guard's distance -- *)

Local Open Scope R_scope.

Local Notation misplaced_ := (@misplaced on_R).

Fixpoint worst_of (pairs : list (R * R)) (worst : R) : R :=
  match pairs with [] => worst | (x, y) :: rest => worst_of rest (Rmax worst (Rabs (x - y))) end.

Lemma worst_of_fold (pairs : list (on_R * on_R)) : forall worst : on_R,
  fold_left (fun worst pair => @maximum on_R worst (@absolute on_R (@sub on_R (fst pair) (snd pair)))) pairs worst =
  worst_of pairs worst.
Proof.
  induction pairs as [|[x y] pairs IH]; intro worst; [reflexivity|].
  simpl. rewrite maximum_Rmax, absolute_Rabs. apply IH.
Qed.

Lemma misplaced_worst (rungs due : list on_R) :
  misplaced_ rungs due = worst_of (combine rungs due) (Rabs (INR (length rungs) - INR (length due))).
Proof.
  rewrite !INR_IZR_INZ. unfold misplaced. rewrite absolute_Rabs. apply worst_of_fold.
Qed.

Lemma worst_of_spec (pairs : list (R * R)) : forall worst : R,
  worst <= worst_of pairs worst /\ (forall x y, In (x, y) pairs -> Rabs (x - y) <= worst_of pairs worst) /\
  (worst_of pairs worst = worst \/ exists x y, In (x, y) pairs /\ worst_of pairs worst = Rabs (x - y)).
Proof.
  induction pairs as [|[x y] pairs IH]; intro worst; simpl.
  - split; [lra|]. split; [intros ? ? [] | left; reflexivity].
  - pose proof (Rmax_l worst (Rabs (x - y))). pose proof (Rmax_r worst (Rabs (x - y))).
    destruct (IH (Rmax worst (Rabs (x - y)))) as (A & B & C). split; [lra|]. split.
    + intros x' y' [E|I]; [injection E as <- <-; lra | apply B; exact I].
    + destruct C as [C|(x' & y' & I & C)]; [|right; exists x', y'; auto].
      rewrite C. unfold Rmax. destruct (Rle_dec worst (Rabs (x - y))); [right; exists x, y; auto | left; reflexivity].
Qed.

(** How far rungs are from those due: no distance and no difference in number is larger, and one of them is as large. *)
Theorem misplaced_is_largest : forall rungs due : list on_R,
  Rabs (INR (length rungs) - INR (length due)) <= misplaced_ rungs due /\
  (forall x y, In (x, y) (combine rungs due) -> Rabs (x - y) <= misplaced_ rungs due) /\
  (misplaced_ rungs due = Rabs (INR (length rungs) - INR (length due)) \/
   exists x y, In (x, y) (combine rungs due) /\ misplaced_ rungs due = Rabs (x - y)).
Proof. intros. rewrite misplaced_worst. apply worst_of_spec. Qed.

(** It is 0 iff they are the same rungs. *)
Theorem misplaced_zero : forall rungs due : list on_R, misplaced_ rungs due = 0 <-> rungs = due.
Proof.
  intros rungs due. destruct (misplaced_is_largest rungs due) as (A & B & C). split; intro E.
  - assert (Z0 : forall x : R, Rabs x <= 0 -> x = 0).
    { intros x Hx. destruct (Req_dec x 0); [assumption|]. pose proof (Rabs_pos_lt x). lra. }
    rewrite E in A, B. clear C E.
    assert (L : length rungs = length due) by (apply INR_eq; specialize (Z0 _ A); lra).
    assert (P : forall x y, In (x, y) (combine rungs due) -> x = y).
    { intros x y I. specialize (Z0 _ (B x y I)). lra. }
    clear - L P. revert due L P.
    induction rungs as [|x rungs IH]; intros [|y due] L P; try discriminate; [reflexivity|].
    f_equal; [apply P; left; reflexivity | apply IH; [injection L; auto | intros; apply P; right; assumption]].
  - subst due. destruct C as [->|(x & y & I & ->)]; [rewrite Rminus_diag_eq by reflexivity; apply Rabs_R0|].
    replace y with x; [rewrite Rminus_diag_eq by reflexivity; apply Rabs_R0|]. clear - I.
    induction rungs as [|z rungs IH]; simpl in I; [destruct I|].
    destruct I as [E|I]; [injection E as <- <-; reflexivity | apply IH; exact I].
Qed.
