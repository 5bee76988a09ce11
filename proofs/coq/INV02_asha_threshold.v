(** INV-2: the threshold rule never prunes a trial that reaches its target, over all learning curves within the declared
    gap, iff target + gap <= threshold; without a gap no threshold is safe; and the seed's identity is beside the point.
    A learning curve is the loss at each step, with a last step; rungs may be any of its steps. *)

Require Import Reals Lra Lia QArith Qreals.
From Karat Require Import Carrier Golden Constants.

Section D.
Context {K : Carrier}.
Local Open Scope carrier_scope.

Definition should_prune (loss threshold : K) : bool := negb (loss <=? threshold).

Definition certificate_margin (threshold target gap : K) : K := threshold - (target + gap).
End D.

Local Open Scope R_scope.

Notation should_prune_R := (should_prune (K := on_R)).
Notation certificate_margin_R := (certificate_margin (K := on_R)).

(** The trial ends at or below the target. *)
Definition reaches (target : R) (curve : nat -> R) (last : nat) : Prop := curve last <= target.

(** No loss on the way is more than `gap` above the end. *)
Definition within_gap (gap : R) (curve : nat -> R) (last : nat) : Prop :=
  forall step : nat, (step <= last)%nat -> curve step <= curve last + gap.

(** No rung prunes it, wherever the rungs are. *)
Definition survives (threshold : R) (curve : nat -> R) (last : nat) : Prop :=
  forall rung : nat, (rung <= last)%nat -> should_prune_R (curve rung) threshold = false.

Definition never_rises (curve : nat -> R) : Prop := forall i j : nat, (i <= j)%nat -> curve j <= curve i.

(** A loss is pruned iff it is above the threshold. *)
Theorem pruned_iff : forall loss threshold : R, should_prune_R loss threshold = true <-> threshold < loss.
Proof. intros. unfold should_prune. compare; split; intro; try reflexivity; try discriminate; lra. Qed.

Lemma kept_iff (loss threshold : R) : should_prune_R loss threshold = false <-> loss <= threshold.
Proof. unfold should_prune. compare; split; intro; try reflexivity; try discriminate; lra. Qed.

(** Sufficient: then no trial that reaches the target is pruned at any rung, whatever its learning curve within the gap. *)
Theorem certificate_suffices : forall (threshold target gap : R) (curve : nat -> R) (last : nat),
  target + gap <= threshold -> reaches target curve last -> within_gap gap curve last -> survives threshold curve last.
Proof.
  intros threshold target gap curve last C T G rung H. apply kept_iff. specialize (G rung H). unfold reaches in T. lra.
Qed.

Lemma certificate_suffices_satisfiable : exists (threshold target gap : R) (curve : nat -> R) (last : nat),
  target + gap <= threshold /\ reaches target curve last /\ within_gap gap curve last.
Proof.
  exists 4, 1, 2, (fun step => if Nat.ltb step 5 then 3 else 1), 9%nat. split; [lra|]. split; [unfold reaches; simpl; lra|].
  intros step _. simpl. destruct (Nat.ltb step 5); lra.
Qed.

(** The curve that stands at target + gap until after the rung and falls to the target then. *)
Definition late (target gap : R) (rung step : nat) : R := if Nat.leb step rung then target + gap else target.

Lemma late_reaches (target gap : R) (rung last : nat) : (rung < last)%nat -> reaches target (late target gap rung) last.
Proof. intro H. unfold reaches, late. destruct (Nat.leb_spec last rung); [lia | lra]. Qed.

Lemma late_within (target gap : R) (rung last : nat) :
  0 <= gap -> (rung < last)%nat -> within_gap gap (late target gap rung) last.
Proof.
  intros G H step _. unfold late. destruct (Nat.leb_spec last rung); [lia|]. destruct (Nat.leb step rung); lra.
Qed.

Lemma late_never_rises (target gap : R) (rung : nat) : 0 <= gap -> never_rises (late target gap rung).
Proof.
  intros G i j H. unfold late. destruct (Nat.leb_spec i rung), (Nat.leb_spec j rung); lra || lia.
Qed.

(** Necessary: otherwise, at every rung before the last step, some trial that reaches the target is pruned, though its loss
    never rises and never is more than the gap above its end. *)
Theorem certificate_is_necessary : forall (threshold target gap : R) (rung last : nat),
  0 <= gap -> (rung < last)%nat -> threshold < target + gap ->
  exists curve : nat -> R, reaches target curve last /\ within_gap gap curve last /\ never_rises curve /\
    should_prune_R (curve rung) threshold = true.
Proof.
  intros threshold target gap rung last G H C. exists (late target gap rung).
  split; [apply late_reaches; exact H|]. split; [apply late_within; assumption|].
  split; [apply late_never_rises; exact G|]. apply pruned_iff. unfold late. rewrite Nat.leb_refl. exact C.
Qed.

Lemma certificate_is_necessary_satisfiable : exists (threshold target gap : R) (rung last : nat),
  0 <= gap /\ (rung < last)%nat /\ threshold < target + gap.
Proof. exists 2, 1, 2, 3%nat, 9%nat. split; [lra|]. split; [lia | lra]. Qed.

(** The guard's margin is >= 0 iff the threshold is safe for all learning curves within the gap. *)
Theorem certificate_is_exact : forall threshold target gap : R, 0 <= gap ->
  (0 <= certificate_margin_R threshold target gap <->
   forall (curve : nat -> R) (last : nat),
     reaches target curve last -> within_gap gap curve last -> survives threshold curve last).
Proof.
  intros threshold target gap G. unfold certificate_margin. simpl. split; intro H.
  - intros curve last. apply certificate_suffices. lra.
  - apply Rnot_lt_le. intro N. destruct (certificate_is_necessary threshold target gap 0 1 G) as [curve [T [W [_ P]]]];
      [lia | lra |]. specialize (H curve 1%nat T W 0%nat). rewrite H in P; [discriminate | lia].
Qed.

Lemma certificate_is_exact_satisfiable : exists threshold target gap : R, 0 <= gap.
Proof. exists (7 / 2), (3 / 2), 2. lra. Qed.

(** With nothing declared about learning curves no threshold is safe, at any rung before the last step. *)
Theorem no_gap_no_threshold : forall (threshold target : R) (rung last : nat), (rung < last)%nat ->
  exists curve : nat -> R, reaches target curve last /\ never_rises curve /\ should_prune_R (curve rung) threshold = true.
Proof.
  intros threshold target rung last H. set (gap := Rmax 0 (threshold - target + 1)).
  pose proof (Rmax_l 0 (threshold - target + 1)). pose proof (Rmax_r 0 (threshold - target + 1)).
  destruct (certificate_is_necessary threshold target gap rung last) as [curve [T [_ [N P]]]];
    unfold gap; try lra; try exact H.
  exists curve. split; [exact T|]. split; [exact N | exact P].
Qed.

Lemma no_gap_no_threshold_satisfiable : exists (threshold target : R) (rung last : nat), (rung < last)%nat.
Proof. exists (7 / 2), (3 / 2), 3%nat, 9%nat. lia. Qed.

(** The default certificate holds with nothing to spare; 2.65 in its place prunes a trial that reaches the target. *)
Theorem default_certificate :
  certificate_margin_R (Q2R certificate_threshold) (Q2R certificate_target) (Q2R certificate_gap) = 0.
Proof. unfold certificate_margin, Q2R; simpl. lra. Qed.

Theorem seed_threshold_prunes : forall rung last : nat, (rung < last)%nat ->
  exists curve : nat -> R, reaches (Q2R certificate_target) curve last /\ within_gap (Q2R certificate_gap) curve last /\
    never_rises curve /\ should_prune_R (curve rung) (265 / 100)%R = true.
Proof.
  intros rung last H. apply certificate_is_necessary; [unfold Q2R; simpl; lra | exact H | unfold Q2R; simpl; lra].
Qed.

Lemma seed_threshold_prunes_satisfiable : exists rung last : nat, (rung < last)%nat.
Proof. exists 3%nat, 9%nat. lia. Qed.

(** phi^2 + phi^-2 + 1/2 is the default threshold: true, and no premise of the theorems above. *)
Theorem seed_identity : phi ^ 2 + / phi ^ 2 + 1 / 2 = Q2R certificate_threshold.
Proof. rewrite phi_squares. unfold Q2R; simpl. lra. Qed.

(** The seed's other sum, phi^2 + phi^-2 + phi^-4, is 3.1458..., neither 3.5 nor 3.472. *)
Theorem seed_sum_enclosed : 31458 / 10000 < phi ^ 2 + / phi ^ 2 + / phi ^ 4 < 31459 / 10000.
Proof.
  rewrite phi_squares. rewrite <- pow_inv, phi_inverse. pose proof phi_squared as E. destruct phi_enclosed.
  assert (S : (phi - 1) ^ 4 = 5 - 3 * phi).
  { transitivity ((phi ^ 2 - 2 * phi + 1) * (phi ^ 2 - 2 * phi + 1)); [ring | rewrite E].
    transitivity (phi ^ 2 - 4 * phi + 4); [ring | rewrite E; ring]. }
  rewrite S. lra.
Qed.

Theorem seed_sum_is_not : phi ^ 2 + / phi ^ 2 + / phi ^ 4 <> Q2R certificate_threshold.
Proof. rewrite <- seed_identity. destruct seed_sum_enclosed. pose proof phi_squares. lra. Qed.
