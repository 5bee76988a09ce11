(** What the guard of INV-11 reads: the running residual is 0 exactly where a matrix is doubly stochastic, small residuals
    bound the gain of a product, and the margin is >= 0 exactly within the declared bounds. *)

Require Import Reals Lra Lia List.
From Karat Require Import Carrier Sums INV11_mhc_doubly_stochastic INV11_norms.
Import ListNotations.
Local Open Scope R_scope.

(** *** Residual *)

(** The running residual is the least bound of |row sum - 1|, |column sum - 1| and -entry. *)
Theorem residual_bound : forall (n : nat) (M : nat -> nat -> R) (r : R),
  (0 < n)%nat ->
  (residual (K := on_R) n M <= r <->
   forall i, (i < n)%nat -> Rabs (total n (M i) - 1) <= r /\ Rabs (total n (fun j => M j i) - 1) <= r /\
     forall j, (j < n)%nat -> - M i j <= r).
Proof.
  intros n M r Hn. unfold residual. rewrite largest_bound.
  - split.
    + intros H i Hi. rewrite <- !absolute_Rabs. split; [|split; [|intros j Hj]];
        apply H, in_flat_map; exists i; (split; [now apply in_range|]).
      * now left.
      * right. now left.
      * right. right. apply in_map_iff. exists j. split; [|now apply in_range]. unfold opp, zero. simpl. ring_R.
    + intros H x Hx. apply in_flat_map in Hx. destruct Hx as (i & Hi & [<-|[<-|Hx]]); apply in_seq in Hi.
      * rewrite absolute_Rabs. apply H. lia.
      * rewrite absolute_Rabs. apply H. lia.
      * apply in_map_iff in Hx. destruct Hx as (j & <- & Hj). apply in_seq in Hj.
        change (0 - M i j <= r). assert (- M i j <= r) by (apply H; lia). lra.
  - destruct n; [lia|]. discriminate.
Qed.

Lemma residual_bound_satisfiable : exists (n : nat) (M : nat -> nat -> R) (r : R), (0 < n)%nat.
Proof. exists 2%nat, (fun _ _ => 1), 0. lia. Qed.

Theorem residual_nonneg : forall (n : nat) (M : nat -> nat -> R), 0 <= residual (K := on_R) n M.
Proof.
  intros n M. destruct n as [|n]; [apply Rle_refl|].
  apply Rle_trans with (Rabs (total (S n) (M 0%nat) - 1)); [apply Rabs_pos|].
  apply (residual_bound (S n) M); [lia | apply Rle_refl | lia].
Qed.

(** The running residual is 0 exactly where the matrix is doubly stochastic: any matrix of any size. *)
Theorem residual_zero : forall (n : nat) (M : nat -> nat -> R),
  residual (K := on_R) n M = 0 <-> doubly_stochastic n M.
Proof.
  intros n M. destruct n as [|n].
  { split; [intros _; repeat split; intros; lia | reflexivity]. }
  assert (Zero : forall x, Rabs x <= 0 -> x = 0).
  { intros x H. destruct (Req_dec x 0) as [|Hx]; [assumption|]. pose proof (Rabs_pos_lt x Hx). lra. }
  transitivity (residual (K := on_R) (S n) M <= 0).
  { split; [intros ->; apply Rle_refl | intro; apply Rle_antisym; [assumption | apply residual_nonneg]]. }
  rewrite residual_bound by lia. split.
  - intro H. repeat split.
    + intros i j Hi Hj. destruct (H i Hi) as (_ & _ & E). specialize (E j Hj). lra.
    + intros i Hi. destruct (H i Hi) as (E & _). apply Zero in E. lra.
    + intros i Hi. destruct (H i Hi) as (_ & E & _). apply Zero in E. lra.
  - intros (P & Rows & Columns) i Hi. rewrite (Rows i Hi), (Columns i Hi).
    replace (1 - 1) with 0 by lra. rewrite Rabs_R0. split; [lra|]. split; [lra|].
    intros j Hj. specialize (P i j Hi Hj). lra.
Qed.

(** *** What the residuals allow at depth *)

(** The gain of a product is at most the product of the gains. *)
Theorem gain_of_product : forall (n : nat) (A B : nat -> nat -> R),
  gain (K := on_R) n (matmul (K := on_R) n A B) <= gain (K := on_R) n A * gain (K := on_R) n B.
Proof.
  intros n A B. destruct n as [|n]; [change (0 <= 0 * 0); lra|].
  pose proof (gain_nonneg (S n) A). pose proof (gain_nonneg (S n) B).
  assert (Entry : forall i j, Rabs (matmul (K := on_R) (S n) A B i j)
      <= total (S n) (fun t => Rabs (A i t) * Rabs (B t j))).
  { intros i j. rewrite matmul_R. eapply Rle_trans; [apply total_abs|]. apply total_le. intros t _.
    rewrite Rabs_mult. apply Rle_refl. }
  apply gain_bound; [lia|]. intros i Hi. split.
  - eapply Rle_trans; [apply total_le; intros j _; apply Entry|]. rewrite total_swap.
    apply Rle_trans with (total (S n) (fun t => Rabs (A i t) * gain (K := on_R) (S n) B)).
    + apply total_le. intros t Ht. rewrite total_scal. apply Rmult_le_compat_l; [apply Rabs_pos|].
      apply (row_size_le_gain (S n) B t Ht).
    + rewrite total_scal_r. apply Rmult_le_compat_r; [assumption | apply (row_size_le_gain (S n) A i Hi)].
  - eapply Rle_trans; [apply total_le; intros j _; apply Entry|]. rewrite total_swap.
    apply Rle_trans with (total (S n) (fun t => gain (K := on_R) (S n) A * Rabs (B t i))).
    + apply total_le. intros t Ht. rewrite total_scal_r. apply Rmult_le_compat_r; [apply Rabs_pos|].
      apply (column_size_le_gain (S n) A t Ht).
    + rewrite total_scal. apply Rmult_le_compat_l; [assumption | apply (column_size_le_gain (S n) B i Hi)].
Qed.

Lemma gain_of_composite (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R)) (c : R) :
  gain (K := on_R) n first <= c -> Forall (fun M => gain (K := on_R) n M <= c) rest ->
  gain (K := on_R) n (composite (K := on_R) n first rest) <= c ^ S (length rest).
Proof.
  intros H F. assert (C : 0 <= c) by (pose proof (gain_nonneg n first); lra).
  assert (G : forall k product, gain (K := on_R) n product <= c ^ k ->
      gain (K := on_R) n (composite (K := on_R) n product rest) <= c ^ (k + length rest)).
  { clear H. induction F as [|M rest HM F IH]; intros k product H.
    - now rewrite Nat.add_0_r.
    - assert (B : gain (K := on_R) n (matmul (K := on_R) n M product) <= c ^ S k).
      { eapply Rle_trans; [apply gain_of_product|]. apply Rmult_le_compat; auto using gain_nonneg. }
      apply (IH (S k)) in B. rewrite plus_Sn_m, plus_n_Sm in B. exact B. }
  apply (G 1%nat). rewrite pow_1. exact H.
Qed.

Lemma gain_within (n : nat) (M : nat -> nat -> R) (r : R) :
  0 <= r -> (forall i j, (i < n)%nat -> (j < n)%nat -> 0 <= M i j) -> residual (K := on_R) n M <= r ->
  gain (K := on_R) n M <= 1 + r.
Proof.
  intros Hr P H. destruct n as [|n]; [change (0 <= 1 + r); lra|]. apply gain_bound; [lia|]. intros i Hi.
  rewrite residual_bound in H by lia. destruct (H i Hi) as (Row & Column & _).
  assert (Above : forall x, Rabs (x - 1) <= r -> x <= 1 + r).
  { intros x Hx. pose proof (Rle_abs (x - 1)). lra. }
  split; [apply Rle_trans with (total (S n) (M i)) | apply Rle_trans with (total (S n) (fun j => M j i))];
    try (apply Above; assumption); apply Req_le, total_ext; intros j Hj; apply Rabs_pos_eq; auto.
Qed.

(** Where entries may be negative a residual of at most r allows a gain of 1 + (2n + 1) r. *)
Theorem gain_within_residual : forall (n : nat) (M : nat -> nat -> R) (r : R),
  residual (K := on_R) n M <= r -> gain (K := on_R) n M <= 1 + (2 * INR n + 1) * r.
Proof.
  intros n M r H. assert (Hr : 0 <= r) by (eapply Rle_trans; [apply residual_nonneg | exact H]).
  destruct n as [|n]; [change (0 <= 1 + (2 * 0 + 1) * r); lra|]. rewrite residual_bound in H by lia.
  assert (Size : forall f, (forall j, (j < S n)%nat -> - f j <= r) -> Rabs (total (S n) f - 1) <= r ->
      total (S n) (fun j => Rabs (f j)) <= 1 + (2 * INR (S n) + 1) * r).
  { intros f P Near. pose proof (Rle_abs (total (S n) f - 1)).
    apply Rle_trans with (total (S n) (fun j => f j + 2 * r)).
    - apply total_le. intros j Hj. specialize (P j Hj). unfold Rabs. destruct (Rcase_abs (f j)); lra.
    - rewrite total_plus, total_const. change (num on_R) with R in *. lra. }
  apply gain_bound; [lia|]. intros i Hi. destruct (H i Hi) as (Row & Column & P). split; apply Size; auto.
  intros j Hj. destruct (H j Hj) as (_ & _ & Q). auto.
Qed.

Lemma gain_within_residual_satisfiable : exists (n : nat) (M : nat -> nat -> R) (r : R), residual (K := on_R) n M <= r.
Proof.
  exists 2%nat, (fun _ _ => / 2), (/ 2). rewrite (proj2 (residual_zero 2 _) average_doubly_stochastic). lra.
Qed.

(** (1 + r)^k <= 1 + k r + (k r)^2 where k r <= 1. *)
Lemma power_bound (r : R) (k : nat) : 0 <= r -> INR k * r <= 1 -> (1 + r) ^ k <= 1 + INR k * r + (INR k * r) ^ 2.
Proof.
  intros Hr. induction k as [|k IH]; intro H; [simpl; lra|].
  rewrite S_INR in *. pose proof (pos_INR k) as Hk. set (m := INR k) in *.
  assert (m * r <= 1) by lra. specialize (IH H0).
  assert (0 <= r * r) by apply Rle_0_sqr. assert (0 <= m * r) by (apply Rmult_le_pos; lra).
  assert (m * r * m <= m) by (rewrite <- (Rmult_1_l m) at 3; apply Rmult_le_compat_r; lra).
  apply Rle_trans with ((1 + r) * (1 + m * r + (m * r) ^ 2)); [simpl; apply Rmult_le_compat_l; simpl in *; lra|].
  assert (0 <= r * r * (m + 1 - m * r * m)) by (apply Rmult_le_pos; lra).
  simpl. nra.
Qed.

(** Matrices with entries >= 0 and residuals of at most r, as many as satisfy count r <= 1: the gain of their product is
    within the tolerance that the guard allows. *)
Theorem gain_within_tolerance : forall (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R)) (g r : R),
  0 <= r ->
  Forall (fun M => (forall i j, (i < n)%nat -> (j < n)%nat -> 0 <= M i j) /\ residual (K := on_R) n M <= r)
    (first :: rest) ->
  INR (length (first :: rest)) * r <= 1 ->
  gain (K := on_R) n (composite (K := on_R) n first rest)
  <= 1 + gain_tolerance (K := on_R) (length (first :: rest)) g r.
Proof.
  intros n first rest g r Hr F H.
  assert (G : Forall (fun M => gain (K := on_R) n M <= 1 + r) (first :: rest)).
  { eapply Forall_impl; [|exact F]. intros M (P & E). now apply gain_within. }
  inversion G; subst. pose proof (gain_of_composite n first rest (1 + r) H2 H3) as B.
  pose proof (power_bound r (length (first :: rest)) Hr H) as E.
  set (count := length (first :: rest)) in *. change (S (length rest)) with count in B.
  assert (0 <= INR count * r) by (apply Rmult_le_pos; [apply pos_INR | assumption]).
  assert (Square : forall x, 0 <= x -> x <= 1 -> x ^ 2 <= x) by (intros; simpl; nra).
  specialize (Square (INR count * r) H0 H).
  unfold gain_tolerance. rewrite maximum_Rmax. change (of_Z (c := on_R)) with IZR. rewrite <- INR_IZR_INZ.
  apply Rle_trans with (1 + 2 * INR count * r); [lra|]. apply Rplus_le_compat_l. apply Rmax_r.
Qed.

Lemma gain_within_tolerance_satisfiable :
  exists (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R)) (g r : R),
  0 <= r /\
  Forall (fun M => (forall i j, (i < n)%nat -> (j < n)%nat -> 0 <= M i j) /\ residual (K := on_R) n M <= r)
    (first :: rest) /\
  INR (length (first :: rest)) * r <= 1.
Proof.
  exists 2%nat, (fun _ _ => / 2), [(fun _ _ => / 2)], 0, (/ 2).
  assert (residual (K := on_R) 2 (fun _ _ => / 2) <= / 2)
    by (rewrite (proj2 (residual_zero 2 _) average_doubly_stochastic); lra).
  split; [lra|]. split; [|simpl; lra]. repeat (apply Forall_cons || apply Forall_nil); (split; [intros; lra | assumption]).
Qed.

(** *** The guard's margin *)

Lemma worst_residual_bound (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R)) (r : R) :
  worst_residual (K := on_R) n first rest <= r <-> Forall (fun M => residual (K := on_R) n M <= r) (first :: rest).
Proof.
  unfold worst_residual. rewrite Forall_cons_iff. generalize (residual (K := on_R) n first) as worst.
  induction rest as [|M rest IH]; intro worst; simpl fold_left.
  - split; [intro H; split; [exact H | apply Forall_nil] | now intros [H _]].
  - rewrite IH, maximum_Rmax, Forall_cons_iff. split.
    + intros [H F]. pose proof (Rmax_l (residual (K := on_R) n M) worst).
      pose proof (Rmax_r (residual (K := on_R) n M) worst). repeat split; try assumption; eapply Rle_trans; eassumption.
    + intros (H & HM & F). split; [apply Rmax_lub; assumption | exact F].
Qed.

(** The margin is >= 0 exactly where every residual, the gain of the product and the spread are within their bounds:
    any number of matrices of any size. *)
Theorem margin_accepts : forall (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R)) (spread r g s : R),
  0 <= margin (K := on_R) n first rest spread r g s <->
  Forall (fun M => residual (K := on_R) n M <= r) (first :: rest) /\
  gain (K := on_R) n (composite (K := on_R) n first rest)
    <= 1 + gain_tolerance (K := on_R) (length (first :: rest)) g r /\
  s <= spread.
Proof.
  intros. rewrite <- worst_residual_bound. unfold margin, nearest_bound, one.
  change (S (length rest)) with (length (first :: rest)).
  generalize (worst_residual (K := on_R) n first rest) as a, (gain (K := on_R) n (composite (K := on_R) n first rest)) as b,
    (gain_tolerance (K := on_R) (length (first :: rest)) g r) as t.
  intros t b a. unfold minimum. simpl in *. compare; lra.
Qed.

(** With doubly stochastic matrices the margin is >= 0 as soon as the streams differ by the declared spread. *)
Theorem margin_of_doubly_stochastic :
  forall (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R)) (spread r g s : R),
  0 <= r -> Forall (doubly_stochastic n) (first :: rest) -> s <= spread ->
  0 <= margin (K := on_R) n first rest spread r g s.
Proof.
  intros n first rest spread r g s Hr F Hs. apply margin_accepts. split; [|split; [|exact Hs]].
  - eapply Forall_impl; [|exact F]. intros M D. rewrite (proj2 (residual_zero n M) D). exact Hr.
  - inversion F; subst.
    apply Rle_trans with 1; [apply gain_at_most_1; now apply composite_doubly_stochastic|].
    unfold gain_tolerance. rewrite maximum_Rmax. change (of_Z (c := on_R)) with IZR. rewrite <- INR_IZR_INZ.
    set (count := INR (length (first :: rest))).
    pose proof (Rmax_r g (2 * count * r)). assert (0 <= 2 * count * r).
    { apply Rmult_le_pos; [|exact Hr]. apply Rmult_le_pos; [lra | apply pos_INR]. }
    simpl in *. lra.
Qed.

Lemma margin_of_doubly_stochastic_satisfiable :
  exists (n : nat) (first : nat -> nat -> R) (rest : list (nat -> nat -> R)) (spread r g s : R),
  0 <= r /\ Forall (doubly_stochastic n) (first :: rest) /\ s <= spread.
Proof.
  destruct composite_doubly_stochastic_satisfiable as (n & first & rest & H & F).
  exists n, first, rest, 1, 0, 0, (/ 2). split; [lra|]. split; [now apply Forall_cons | lra].
Qed.
